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
#include "quant/base/device.h"
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
  // Rounds of quantizing W - AB and correcting the new W - What by new A and B; the one with the
  // least error of the outputs (of the weights where nothing is calibrated) is kept. 1: W itself is
  // quantized, once, and its error corrected.
  int lorc_iterations = 1;
  ScaleSearch scale_search = ScaleSearch::kNone;  // kDiagonal: not in natural order
  std::optional<uint64_t> rotate_seed;            // absent: the residual stream is not turned
  std::vector<std::string> exclude;               // glob patterns over names without ".weight"
  Compute compute = Compute::kF32;
  CalibrationSpec calibration;  // read by GPTQ and by the input metric
};

struct LinearReport {
  std::string name;
  // trace(E H E^T) / trace(W H W^T); absent where nothing is calibrated.
  std::optional<double> output_error;
  double weight_error = 0;  // ||E|| / ||W||
  int64_t clamped_groups = 0;
  double damping = 0;
  int damping_escalations = 0;
  double seconds = 0;
};

struct LayerReport {
  int64_t layer = 0;
  std::vector<LinearReport> linears;
  int64_t weights = 0;  // of all its linears, the excluded ones too
  double bits = 0;      // that store them, scales and LoRC included
  double seconds = 0;
  int64_t peak_host_bytes = 0;    // resident set size, highest of the process so far
  int64_t peak_device_bytes = 0;  // 0: on a CPU
};

enum class Phase { kLoading, kCalibrating, kQuantizing, kWriting };

struct Progress {
  Phase phase = Phase::kLoading;
  int64_t layer = 0;  // layers finished
  int64_t layers = 0;
  double mean_output_error = 0;  // over the linears so far
  double seconds = 0;
  std::optional<double> seconds_left;  // known once a layer has ended
  // Set when a layer has just ended and, while loading, for each that an earlier attempt had ended.
  const LayerReport* finished = nullptr;
  std::string note;  // in words, where there is something to say
};

struct QuantizeSummary {
  double linear_bits_per_weight = 0;
  double model_bits_per_weight = 0;
  int64_t artifact_bytes = 0;
  double mean_output_error = 0;
  double seconds = 0;
};

// Every combination that can't work is INVALID_ARGUMENT with field, found, expected; needs the
// checkpoint's config and shapes, and norms alone of its data.
absl::Status CheckQuantizeSpec(const QuantizeSpec& spec, const std::filesystem::path& checkpoint);

// Called between steps (at least once per layer); a non-OK status stops the work with that status.
using ProgressCallback = std::function<absl::Status(const Progress&)>;

// Works on `device`. Reads `checkpoint`, writes the artifact at `artifact` (which must not exist)
// by way of StagingFolder(artifact). The folder keeps every layer that is finished, and stays on
// any failure: the same call goes on after the last of them and, on the same type of device with
// the same number of threads, makes the same files (but for the seconds and peaks in report.json).
// Layers of another spec, model or corpus, and damaged ones, are not used; `progress` is told why.
absl::StatusOr<QuantizeSummary> QuantizeModel(const QuantizeSpec& spec,
                                              const std::filesystem::path& checkpoint,
                                              const std::filesystem::path& artifact,
                                              const ProgressCallback& progress,
                                              const Device& device = {});

// `<artifact's parent>/.staging-<artifact's name>`.
std::filesystem::path StagingFolder(const std::filesystem::path& artifact);
// The artifact that a folder is StagingFolder of; empty for any other folder.
std::filesystem::path StagedArtifact(const std::filesystem::path& folder);
// Removes what unfinished attempts have left. OK when there is nothing.
absl::Status RemoveStaging(const std::filesystem::path& artifact);

}  // namespace nibble
