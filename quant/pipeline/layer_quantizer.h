// Quantizing the linears of one decoder layer in place. Private to pipeline/.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/gptq/gptq.h"
#include "quant/model/checkpoint/safetensors.h"
#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {

// One per input group of the layer; empty when nothing was calibrated.
using Hessians = std::map<InputGroup, Hessian>;

struct QuantizedLayer {
  std::vector<LinearReport> linears;
  std::vector<NamedTensor> tensors;  // what the artifact stores of the layer's quantized linears
  int64_t weights = 0;               // of all its linears, the excluded ones too
  double bits = 0;                   // that store them, scales and LoRC included
};

// Replaces the weights of every linear not in `excluded` by their quantized true values and LoRC
// factors, and sets its activation rounding. `step` is called between linears; a status stops.
absl::StatusOr<QuantizedLayer> QuantizeLayer(const QuantizeSpec& spec,
                                             const std::set<std::string>& excluded,
                                             const Hessians& hessians, DecoderLayer& layer,
                                             const std::function<absl::Status()>& step);

// Brings a layer as loaded into the state in which QuantizeLayer has left it, from the tensors that
// it made.
absl::Status RestoreLayer(const QuantizeSpec& spec, const std::set<std::string>& excluded,
                          const TensorSource& tensors, DecoderLayer& layer);

}  // namespace nibble
