#include "quant/pipeline/calibration.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/kernels/device/torch_device.h"
#include "quant/model/tokenizer/tokenizer.h"
#include "quant/pipeline/corpus.h"

namespace nibble {
namespace {

constexpr int64_t kBatchTokens = 4096;

std::vector<Batch> MakeBatches(const std::vector<std::vector<int32_t>>& windows) {
  std::vector<Batch> batches;
  for (const std::vector<int32_t>& window : windows) {
    const int64_t length = static_cast<int64_t>(window.size());
    if (batches.empty() ||
        static_cast<int64_t>(batches.back().tokens.size()) + length > BatchTokens(length)) {
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

int64_t BatchTokens(int64_t window_tokens) {
  return std::max<int64_t>(1, kBatchTokens / window_tokens) * window_tokens;
}

absl::StatusOr<Calibration> Calibration::Embed(const CalibrationSpec& spec,
                                               const std::filesystem::path& checkpoint,
                                               const DecoderLoader& loader) {
  NIBBLE_ASSIGN_OR_RETURN(const auto windows, ReadWindows(spec, checkpoint, loader.config().vocab));
  NIBBLE_ASSIGN_OR_RETURN(const DecoderEnds ends, loader.LoadEnds());
  Calibration calibration;
  for (Batch& batch : MakeBatches(windows)) {
    Windows& made = calibration.batches_.emplace_back();
    made.batch = std::move(batch);
    made.rotary = MakeRotary(loader.config(), made.batch, TorchDevice(loader.device()));
    made.hidden = nibble::Embed(loader.config(), ends, made.batch);
  }
  return calibration;
}

absl::StatusOr<Hessians> Calibration::Accumulate(const ModelConfig& config,
                                                 const DecoderLayer& layer,
                                                 const Step& step) const {
  Hessians hessians;
  for (const Windows& windows : batches_) {
    NIBBLE_RETURN_IF_ERROR(step());
    RunLayer(config, layer, windows.hidden, windows.batch, windows.rotary, nullptr,
             [&](InputGroup group, const at::Tensor& x) {
               hessians.try_emplace(group, x.size(-1)).first->second.Accumulate(x);
             });
  }
  return hessians;
}

absl::Status Calibration::Advance(const ModelConfig& config, const DecoderLayer& layer,
                                  const Step& step) {
  for (Windows& windows : batches_) {
    NIBBLE_RETURN_IF_ERROR(step());
    windows.hidden =
        RunLayer(config, layer, windows.hidden, windows.batch, windows.rotary, nullptr);
  }
  return absl::OkStatus();
}

}  // namespace nibble
