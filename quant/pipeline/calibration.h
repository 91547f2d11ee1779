// The calibration windows on their way through the layers. Private to pipeline/.
#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/hidden_states.h"
#include "quant/pipeline/layer_quantizer.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {

// Called between the steps of a layer; a status stops the work with it.
using Step = std::function<absl::Status()>;

// Tokens of the windows that go through a layer at once; at least one window's.
int64_t BatchTokens(int64_t window_tokens, const Device& device = {});

// Windows go through a layer in fixed batches, so that sums come out the same every time. One made
// by default has no windows.
class Calibration {
 public:
  // Cuts the corpus into windows and embeds them on the loader's device. What finds no room in
  // memory goes to a file in `folder`.
  static absl::StatusOr<Calibration> Embed(const CalibrationSpec& spec,
                                           const std::filesystem::path& checkpoint,
                                           const DecoderLoader& loader,
                                           const std::filesystem::path& folder);

  StatesPlace states_place() const { return hidden_.place(); }

  // One pass with the layer's weights as they are and unrounded activations, summing every group's
  // Hessian.
  absl::StatusOr<Hessians> Accumulate(const ModelConfig& config, const DecoderLayer& layer,
                                      const Step& step) const;
  // Replaces the hidden states by the layer's outputs.
  absl::Status Advance(const ModelConfig& config, const DecoderLayer& layer, const Step& step);

 private:
  struct Windows {
    Batch batch;
    Rotary rotary;
    int64_t first;  // its rows' place among the hidden states
    int64_t tokens() const { return static_cast<int64_t>(batch.tokens.size()); }
  };
  std::vector<Windows> batches_;
  HiddenStates hidden_;
};

}  // namespace nibble
