// The sizes that a job's needs are made of. Private to pipeline/.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/model/checkpoint/config.h"
#include "quant/model/decoder/decoder.h"
#include "quant/model/decoder/linears.h"
#include "quant/pipeline/estimate.h"
#include "quant/pipeline/layout.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {

struct JobShapes {
  static absl::StatusOr<JobShapes> Count(const QuantizeSpec& spec,
                                         const std::filesystem::path& checkpoint,
                                         const DecoderLoader& loader, const Device& device);

  // Of a weight or hidden state at work.
  int64_t value_bytes() const { return gpu && spec.compute == Compute::kBf16 ? 2 : 4; }
  bool calibrates() const { return tokens > 0; }
  bool rotates() const { return spec.rotate_seed.has_value(); }
  bool solves() const { return calibrates() && spec.weights && spec.method == Method::kGptq; }

  QuantizeSpec spec;
  bool gpu = false;
  ModelConfig config;               // the artifact's: rotation unties the head
  std::vector<LinearInfo> linears;  // of every layer
  std::set<std::string> excluded;
  ArtifactLayout layout;

  // One layer's, excluded ones too: every layer has the same.
  std::vector<LinearInfo> layer;
  std::map<InputGroup, int64_t> inputs;  // K of each group
  int64_t layer_weights = 0;

  int64_t tokens = 0;        // of the calibration; 0: nothing is calibrated
  int64_t batch_tokens = 0;  // that go through a layer at once

  int64_t ends_weights = 0;         // values that Embed holds
  int64_t largest_end = 0;          // of the tensors among them
  int64_t rest_bytes = 0;           // of what is stored in bf16
  int64_t largest_rest_shard = 0;   // bytes
  int64_t largest_rest_tensor = 0;  // values
  int64_t source_bytes = 0;         // of the checkpoint's tensor files
  int64_t corpus_bytes = 0;
  int64_t tokenizer_bytes = 0;
};

// What the artifact stores of a linear that is quantized: codes, scales, LoRC's factors.
int64_t StoredLinearBytes(const QuantizeSpec& spec, const LinearInfo& linear);

// Peaks of a worker, in bytes.
struct PeakMemory {
  int64_t host = 0;
  int64_t device = 0;   // 0: on a CPU
  int64_t spilled = 0;  // hidden states in a file
};
PeakMemory CountMemory(const JobShapes& job, const Place& place);

// Running time by the rates of job_time.cc.
double CountSeconds(const JobShapes& job, int threads, int64_t artifact_bytes);

}  // namespace nibble
