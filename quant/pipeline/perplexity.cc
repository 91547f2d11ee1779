#include "quant/pipeline/perplexity.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <string>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/model/tokenizer/tokenizer.h"
#include "quant/pipeline/corpus.h"

namespace nibble {
namespace {

// Summed over the targets of one window.
double NegativeLogLikelihood(const Decoder& decoder, const std::vector<int32_t>& window) {
  const auto length = static_cast<int64_t>(window.size());
  const Batch batch = {
      .tokens = window,
      .segments = {{.first_row = 0, .length = length, .position = 0, .blocks = {}}}};
  std::vector<int64_t> rows(length - 1);
  std::iota(rows.begin(), rows.end(), 0);
  const at::Tensor logits = decoder.Logits(decoder.Forward(batch, nullptr), rows);
  const at::Tensor targets =
      at::tensor(at::ArrayRef<int32_t>(window).slice(1), at::kInt).to(logits.device(), at::kLong);
  const at::Tensor likelihoods =
      at::log_softmax(logits, -1).gather(1, targets.unsqueeze(1));  // f32
  return -likelihoods.sum(at::kDouble).item<double>();
}

}  // namespace

absl::StatusOr<Perplexity> EvaluatePerplexity(const Decoder& decoder,
                                              absl::Span<const std::vector<int32_t>> windows) {
  if (windows.empty()) {
    return absl::InvalidArgumentError("windows: found none, expected 1 or more");
  }
  return CatchTorch([&]() -> absl::StatusOr<Perplexity> {
    const c10::InferenceMode inference;
    Perplexity result;
    double sum = 0;
    for (const std::vector<int32_t>& window : windows) {
      if (window.size() < 2) {
        return absl::InvalidArgumentError(
            StrCat("window: found ", window.size(), " tokens, expected 2 or more"));
      }
      sum += NegativeLogLikelihood(decoder, window);
      ++result.windows;
      result.targets += static_cast<int64_t>(window.size()) - 1;
    }
    result.perplexity = std::exp(sum / static_cast<double>(result.targets));
    return result;
  });
}

absl::StatusOr<std::vector<std::vector<int32_t>>> EvaluationWindows(
    const std::filesystem::path& model, const std::filesystem::path& corpus,
    int64_t window_tokens) {
  NIBBLE_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(model));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(model));
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadCorpus(corpus, 0, 0));
  return CutWindows(*tokenizer, config.vocab, text, window_tokens, 0);
}

}  // namespace nibble
