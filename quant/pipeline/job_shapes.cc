#include "quant/pipeline/job_shapes.h"

#include <algorithm>
#include <system_error>

#include "quant/base/status_macros.h"
#include "quant/pipeline/calibration.h"
#include "quant/pipeline/check.h"
#include "quant/pipeline/manifest.h"

namespace nibble {
namespace {

int64_t FileBytes(const std::filesystem::path& file) {
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(file, error);
  return error ? 0 : static_cast<int64_t>(bytes);
}

void CountLayer(JobShapes& job) {
  for (const LinearInfo& linear : job.linears) {
    if (linear.layer != 0) continue;
    job.layer.push_back(linear);
    job.inputs[linear.input] = linear.cols;
    job.layer_weights += linear.rows * linear.cols;
  }
}

void CountCalibration(const Device& device, JobShapes& job) {
  const CalibrationSpec& calibration = job.spec.calibration;
  if (!job.spec.weights || calibration.corpus.empty()) return;
  job.tokens = calibration.windows * calibration.window_tokens;
  job.batch_tokens = std::min(job.tokens, BatchTokens(calibration.window_tokens, device));
  job.corpus_bytes = FileBytes(calibration.corpus);
}

// Embedding, head and positions.
void CountEnds(JobShapes& job) {
  const ModelConfig& config = job.config;
  const int64_t width = config.family == Family::kOpt ? config.embed_dim : config.hidden;
  job.largest_end = config.vocab * width;
  job.ends_weights = job.largest_end * (config.tied_embeddings ? 1 : 2);
  if (config.family == Family::kOpt) job.ends_weights += (config.context + 2) * config.hidden;
  if (width != config.hidden) job.ends_weights += 2 * width * config.hidden;
}

void CountRest(JobShapes& job) {
  for (const std::vector<RestTensor>& tensors : job.layout.rest) {
    int64_t shard = 0;
    for (const RestTensor& tensor : tensors) {
      shard += 2 * tensor.elements;
      job.largest_rest_tensor = std::max(job.largest_rest_tensor, tensor.elements);
    }
    job.rest_bytes += shard;
    job.largest_rest_shard = std::max(job.largest_rest_shard, shard);
  }
}

}  // namespace

absl::StatusOr<JobShapes> JobShapes::Count(const QuantizeSpec& spec,
                                           const std::filesystem::path& checkpoint,
                                           const DecoderLoader& loader, const Device& device) {
  JobShapes job;
  job.spec = spec;
  job.gpu = device.is_cuda();
  job.config = loader.config();
  if (spec.rotate_seed) job.config.tied_embeddings = false;
  NIBBLE_ASSIGN_OR_RETURN(job.linears, loader.Linears());
  NIBBLE_ASSIGN_OR_RETURN(job.excluded, ExcludedLinears(spec.exclude, job.linears));
  job.layout = PlanArtifact(job.config, loader.tensors(), job.linears, job.excluded);
  CountLayer(job);
  CountCalibration(device, job);
  CountEnds(job);
  CountRest(job);
  for (const auto& file : loader.tensors().files()) job.source_bytes += FileBytes(file);
  for (const auto& file : TokenizerFiles(checkpoint)) job.tokenizer_bytes += FileBytes(file);
  return job;
}

int64_t StoredLinearBytes(const QuantizeSpec& spec, const LinearInfo& linear) {
  const int64_t values = linear.rows * linear.cols;
  const int64_t weights =
      spec.weights ? StoredBytes(*spec.weights, linear.rows, linear.cols) : 2 * values;
  return weights + 2 * int64_t{spec.lorc_rank} * (linear.rows + linear.cols);
}

}  // namespace nibble
