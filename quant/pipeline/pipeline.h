// Quantizing a whole model, layer by layer: one layer's working set beyond the calibration's hidden
// states in memory. Torch-free, so that the server can include it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quant/base/compute.h"
#include "quant/formats/formats.h"
#include "quant/gptq/options.h"

namespace nibble {

struct CalibrationSpec {
  std::filesystem::path corpus;  // .txt or .jsonl
  int64_t first_text = 0;        // 1-based, inclusive; 0: from the first (.jsonl only)
  int64_t last_text = 0;         // inclusive; 0: to the last
  int64_t windows = 128;
  int64_t window_tokens = 2048;
};

struct QuantizeSpec {
  std::optional<WeightSpec> weights;          // absent: weights stay
  std::optional<ActivationSpec> activations;  // absent: activations stay
  Method method = Method::kGptq;
  GptqOptions gptq;
  int lorc_rank = 0;  // 0: none
  LorcMetric lorc_metric = LorcMetric::kWeight;
  std::vector<std::string> exclude;  // glob patterns over names without ".weight"
  Compute compute = Compute::kF32;
  CalibrationSpec calibration;  // read by GPTQ and by the input metric
};

struct LinearReport {
  std::string name;
  double output_error = 0;  // trace(E H E^T) / trace(W H W^T)
  double weight_error = 0;  // ||E|| / ||W||
  int64_t clamped_groups = 0;
  double damping = 0;
  int damping_escalations = 0;
  double seconds = 0;
};

struct LayerReport {
  int64_t layer = 0;
  std::vector<LinearReport> linears;
  double seconds = 0;
  int64_t peak_bytes = 0;  // resident set size, highest so far
};

enum class Phase { kLoading, kCalibrating, kQuantizing, kWriting };

struct Progress {
  Phase phase = Phase::kLoading;
  int64_t layer = 0;  // layers finished
  int64_t layers = 0;
  double mean_output_error = 0;  // over the linears so far
  double seconds = 0;
  const LayerReport* finished = nullptr;  // set when a layer has just ended
};

struct QuantizeSummary {
  double linear_bits_per_weight = 0;
  double model_bits_per_weight = 0;
  int64_t artifact_bytes = 0;
  double mean_output_error = 0;
  double seconds = 0;
};

// Every combination that can't work is INVALID_ARGUMENT with field, found, expected; needs no
// tensor data, only the checkpoint's config and shapes.
absl::Status CheckQuantizeSpec(const QuantizeSpec& spec, const std::filesystem::path& checkpoint);

// Called between steps (at least once per layer); a non-OK status stops the work with that status.
using ProgressCallback = std::function<absl::Status(const Progress&)>;

// Reads `checkpoint`, writes the artifact at `artifact` (which must not exist) by way of a staging
// folder `<artifact's parent>/.staging-<artifact's name>`, removed on any failure.
absl::StatusOr<QuantizeSummary> QuantizeModel(const QuantizeSpec& spec,
                                              const std::filesystem::path& checkpoint,
                                              const std::filesystem::path& artifact,
                                              const ProgressCallback& progress);

}  // namespace nibble
