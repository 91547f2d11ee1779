#include "quant/pipeline/calibration.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/model/tokenizer/tokenizer.h"
#include "quant/pipeline/corpus.h"

namespace nibble {
namespace {

std::vector<Batch> MakeBatches(const std::vector<std::vector<int32_t>>& windows,
                               int64_t batch_tokens) {
  std::vector<Batch> batches;
  for (const std::vector<int32_t>& window : windows) {
    const int64_t length = static_cast<int64_t>(window.size());
    if (batches.empty() ||
        static_cast<int64_t>(batches.back().tokens.size()) + length > batch_tokens) {
      batches.emplace_back();
    }
    Batch& batch = batches.back();
    batch.segments.push_back({.first_row = static_cast<int64_t>(batch.tokens.size()),
                              .length = length,
                              .position = 0,
                              .blocks = {}});
    batch.tokens.insert(batch.tokens.end(), window.begin(), window.end());
  }
  return batches;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> ReadWindows(
    const CalibrationSpec& spec, const std::filesystem::path& checkpoint, int64_t vocab) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(checkpoint));
  NIBBLE_ASSIGN_OR_RETURN(const std::string text,
                          ReadCorpus(spec.corpus, spec.first_text, spec.last_text));
  return CutWindows(*tokenizer, vocab, text, spec.window_tokens, spec.windows);
}

}  // namespace

int64_t BatchTokens(int64_t window_tokens, const Device& device) {
  const int64_t wanted = device.is_cuda() ? 16384 : 4096;
  return std::max<int64_t>(1, wanted / window_tokens) * window_tokens;
}

absl::StatusOr<Calibration> Calibration::Embed(const CalibrationSpec& spec,
                                               const std::filesystem::path& checkpoint,
                                               const DecoderLoader& loader,
                                               const std::filesystem::path& folder) {
  NIBBLE_ASSIGN_OR_RETURN(const auto windows, ReadWindows(spec, checkpoint, loader.config().vocab));
  NIBBLE_ASSIGN_OR_RETURN(const DecoderEnds ends, loader.LoadEnds());
  const at::TensorOptions options = loader.options();
  const int64_t tokens = static_cast<int64_t>(windows.size()) * spec.window_tokens;
  Calibration calibration;
  NIBBLE_ASSIGN_OR_RETURN(calibration.hidden_,
                          HiddenStates::Make(tokens, loader.config().hidden, options,
                                             FreeStatesBudget(options.device()), folder));
  int64_t first = 0;
  for (Batch& batch : MakeBatches(windows, BatchTokens(spec.window_tokens, loader.device()))) {
    Rotary rotary = MakeRotary(loader.config(), batch, options.device());
    calibration.hidden_.Write(first, nibble::Embed(loader.config(), ends, batch));
    const Windows& made =
        calibration.batches_.emplace_back(Windows{std::move(batch), std::move(rotary), first});
    first += made.tokens();
  }
  return calibration;
}

absl::StatusOr<Hessians> Calibration::Accumulate(const ModelConfig& config,
                                                 const DecoderLayer& layer,
                                                 const Step& step) const {
  Hessians hessians;
  for (const Windows& windows : batches_) {
    NIBBLE_RETURN_IF_ERROR(step());
    RunLayer(config, layer, hidden_.Read(windows.first, windows.tokens()), windows.batch,
             windows.rotary, nullptr, [&](InputGroup group, const at::Tensor& x) {
               hessians.try_emplace(group, x.size(-1), x.device()).first->second.Accumulate(x);
             });
  }
  return hessians;
}

absl::Status Calibration::Advance(const ModelConfig& config, const DecoderLayer& layer,
                                  const Step& step) {
  for (const Windows& windows : batches_) {
    NIBBLE_RETURN_IF_ERROR(step());
    const at::Tensor hidden = hidden_.Read(windows.first, windows.tokens());
    hidden_.Write(windows.first,
                  RunLayer(config, layer, hidden, windows.batch, windows.rotary, nullptr));
  }
  return absl::OkStatus();
}

}  // namespace nibble
