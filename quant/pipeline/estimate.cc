#include "quant/pipeline/estimate.h"

#include <memory>

#include "quant/base/status_macros.h"
#include "quant/pipeline/job_shapes.h"

namespace nibble {
namespace {

// Most bytes of text that something takes in an artifact, its name aside.
constexpr int64_t kTensorText = 256;   // a tensor: its shard's header, the index
constexpr int64_t kLinearText = 512;   // a linear: report.json
constexpr int64_t kLayerText = 512;    // a layer: report.json, its shard in nibble.json
constexpr int64_t kModelText = 32768;  // config.json, nibble.json
constexpr int64_t kTensorsOfALinear = 6;

struct Stored {
  int64_t bytes = 0;  // of the artifact's files
  int64_t report = 0;
  double bits_per_weight = 0;
};

Stored CountStored(const JobShapes& job) {
  Stored stored;
  double weights = 0;
  double bits = 0;
  int64_t text = kModelText;
  for (const LinearInfo& linear : job.linears) {
    const double values = static_cast<double>(linear.rows) * static_cast<double>(linear.cols);
    const auto name = static_cast<int64_t>(linear.name.size());
    weights += values;
    stored.report += kLinearText + name;
    if (job.excluded.contains(linear.name)) {
      bits += 16 * values;
      text += 3 * name + kTensorText;
    } else {
      const int64_t bytes = StoredLinearBytes(job.spec, linear);
      bits += 8.0 * static_cast<double>(bytes);
      stored.bytes += bytes;
      text += kTensorsOfALinear * (2 * name + kTensorText);
    }
  }
  for (const auto& tensors : job.layout.rest) {
    for (const RestTensor& tensor : tensors) {
      text += 2 * static_cast<int64_t>(tensor.name.size()) + kTensorText;
    }
  }
  stored.report += job.config.layers * kLayerText;
  stored.bytes += job.rest_bytes + job.tokenizer_bytes + text + stored.report;
  stored.bits_per_weight = bits / weights;
  return stored;
}

}  // namespace

absl::StatusOr<QuantizeEstimate> EstimateQuantize(const QuantizeSpec& spec,
                                                  const std::filesystem::path& checkpoint,
                                                  const Place& place) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<DecoderLoader> loader,
                          DecoderLoader::Open(checkpoint, spec.compute));
  NIBBLE_ASSIGN_OR_RETURN(const JobShapes job,
                          JobShapes::Count(spec, checkpoint, *loader, place.device));
  const Stored stored = CountStored(job);
  const PeakMemory peak = CountMemory(job, place);
  QuantizeEstimate estimate;
  estimate.host_bytes = peak.host;
  estimate.device_bytes = peak.device;
  estimate.artifact_bytes = stored.bytes;
  // The record and its replacement.
  estimate.disk_bytes = stored.bytes + 2 * stored.report + peak.spilled;
  estimate.seconds = CountSeconds(job, place.threads, stored.bytes);
  estimate.linear_bits_per_weight = stored.bits_per_weight;
  return estimate;
}

}  // namespace nibble
