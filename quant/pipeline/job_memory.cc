// The peak of a job's memory: what each phase holds at once, as the pipeline allocates it.
#include <algorithm>

#include "quant/pipeline/job_shapes.h"
#include "quant/pipeline/states_place.h"

namespace nibble {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// A process with LibTorch, its libraries' buffers and a spec, before it has read a tensor.
constexpr int64_t kCpuProcess = 384 * kMiB;
constexpr int64_t kGpuProcess = 2048 * kMiB;  // CUDA's libraries are large
constexpr int64_t kGpuContext = 1024 * kMiB;  // on the device: context, cuBLAS and cuSOLVER
constexpr int64_t kTextFactor = 12;           // tokenizer.json, parsed
constexpr int64_t kCorpusFactor = 10;  // the text, its copy, pieces and a token for each byte

int64_t Squared(int64_t n) { return n * n; }

// Turning a tensor: its values and their product with Q, in f64.
constexpr int64_t kTurnBytes = 16;

// Q, in f64, as long as the job runs.
int64_t RotationBytes(const JobShapes& job) {
  return job.rotates() ? 8 * Squared(job.config.hidden) : 0;
}

// Making Q on the host: for LLaMA a Kronecker product and its signs; for OPT the normal values,
// QR's copy and both of its results, Q and an outer product.
int64_t MakeRotationBytes(const JobShapes& job) {
  if (!job.rotates()) return 0;
  return (job.config.family == Family::kOpt ? 6 : 4) * 8 * Squared(job.config.hidden);
}

// A tensor on its way between its type in the checkpoint, that of the work and bf16.
int64_t TensorBytes(const JobShapes& job, int64_t values) {
  return (job.rotates() ? kTurnBytes : 6) * values;
}

// The calibration's hidden states: all windows, as long as the job runs.
int64_t StatesBytes(const JobShapes& job) {
  return job.tokens * job.value_bytes() * job.config.hidden;
}

// Its rotary angles, f32, as long.
int64_t RotaryBytes(const JobShapes& job) {
  return job.config.family == Family::kLlama ? 4 * job.tokens * job.config.head_dim : 0;
}

// One batch on its way through a layer: what the attention or the MLP holds at its widest, each
// intermediate a tensor of its own.
int64_t BatchBytes(const JobShapes& job) {
  const ModelConfig& config = job.config;
  const int64_t queries = config.heads * config.head_dim;
  const int64_t keys = config.kv_heads * config.head_dim;
  // In, normalized, rounded; q, k, v; the output and, for one window, keys and values widened.
  const int64_t attention = 3 * config.hidden + 3 * queries + 2 * keys + 2 * queries;
  // In, middle, normalized, rounded, out; gate, up, silu, product and its rounding.
  const int64_t mlp = 5 * config.hidden + 5 * config.intermediate;
  return job.value_bytes() * job.batch_tokens * std::max(attention, mlp);
}

// H of every input group, f32.
int64_t HessianBytes(const JobShapes& job) {
  if (!job.calibrates()) return 0;
  int64_t bytes = 0;
  for (const auto& [group, cols] : job.inputs) bytes += 4 * Squared(cols);
  return bytes;
}

// Factoring H, mirrored in f32: in f64 H damped, its root, the identity and the root's inverse; a
// temporary of its check. cuSOLVER and cuBLAS work on two transposed copies.
int64_t FactorBytes(const JobShapes& job, int64_t cols) {
  return (4 + 4 * 8 + 1 + (job.gpu ? 2 * 8 : 0)) * Squared(cols);
}

// What linears of one input share, f32: H mirrored and its factor.
int64_t SharedBytes(const JobShapes& job, int64_t cols) {
  return ((job.calibrates() ? 4 : 0) + (job.solves() ? 4 : 0)) * Squared(cols);
}

// Rounding a linear: two f32 copies of its weights, its codes in bytes, a temporary of the check.
int64_t RoundBytes(int64_t values) { return (4 + 4 + 1 + 5) * values; }

// Its errors: the dequantized weights (f32), three temporaries.
int64_t ErrorBytes(int64_t values) { return 4 * 4 * values; }

// LoRC in f64: E and E R, the Gram matrix with its eigenvectors and their workspace; for the input
// metric H, H damped, its factor and a temporary.
int64_t LorcBytes(const QuantizeSpec& spec, int64_t rows, int64_t cols) {
  if (spec.lorc_rank == 0) return 0;
  const bool input = spec.lorc_metric == LorcMetric::kInput;
  const int64_t error = (4 + 8 + (input ? 8 : 0)) * rows * cols;
  const int64_t metric = input ? (4 + 4 * 8) * Squared(cols) : 0;
  return error + metric + 5 * 8 * Squared(std::min(rows, cols));
}

// Searching scales: so many rows' temporaries at a time, 4 bytes each, beside two copies of w.
int64_t SearchBytes(const QuantizeSpec& spec, int64_t rows, int64_t cols) {
  if (spec.scale_search == ScaleSearch::kNone) return 0;
  return 8 * rows * cols + 8 * 4 * std::min(rows * cols, std::max(cols, kScaleSearchValues));
}

// What LoRC's iterations keep beside the one at work: its target, the best one's values, product
// and codes, the last product.
int64_t IterationBytes(const QuantizeSpec& spec, int64_t values) {
  return spec.lorc_iterations == 1 ? 0 : (4 * 4 + 1) * values;
}

// What quantizing one linear takes beside the layer and its Hessians.
int64_t SolveBytes(const JobShapes& job, const LinearInfo& linear) {
  const int64_t values = linear.rows * linear.cols;
  if (!job.spec.weights) return 8 * values;
  int64_t most = std::max(RoundBytes(values), ErrorBytes(values));
  most = std::max(most, 4 * values + LorcBytes(job.spec, linear.rows, linear.cols));
  most = std::max(most, SearchBytes(job.spec, linear.rows, linear.cols));
  most += SharedBytes(job, linear.cols) + IterationBytes(job.spec, values);
  return job.solves() ? std::max(most, FactorBytes(job, linear.cols)) : most;
}

// A layer from its load to its shard.
int64_t LayerBytes(const JobShapes& job) {
  int64_t stored = 0;
  int64_t solve = 0;
  for (const LinearInfo& linear : job.layer) {
    stored += StoredLinearBytes(job.spec, linear);
    solve = std::max(solve, SolveBytes(job, linear));
  }
  return job.value_bytes() * job.layer_weights + HessianBytes(job) +
         std::max(solve + stored, job.calibrates() ? BatchBytes(job) : 0);
}

// The corpus and its tokens.
int64_t TextBytes(const JobShapes& job) {
  if (!job.calibrates()) return 0;
  return kTextFactor * job.tokenizer_bytes + kCorpusFactor * job.corpus_bytes;
}

// A layer whose last linear is turned.
int64_t TurnedLayerBytes(const JobShapes& job) {
  if (!job.rotates()) return 0;
  int64_t largest = 0;
  for (const LinearInfo& linear : job.layer) {
    largest = std::max(largest, linear.rows * linear.cols);
  }
  return job.value_bytes() * job.layer_weights + kTurnBytes * largest;
}

// The ends, one of them on its way through bf16.
int64_t EndsBytes(const JobShapes& job) {
  if (!job.calibrates()) return 0;
  return job.value_bytes() * job.ends_weights + TensorBytes(job, job.largest_end);
}

// A tensor of what is not quantized, on its turn.
int64_t TurnedRestBytes(const JobShapes& job) {
  return job.rotates() ? kTurnBytes * job.largest_rest_tensor : 0;
}

// A shard of what is not quantized, and one of its tensors.
int64_t RestBytes(const JobShapes& job) { return job.largest_rest_shard + TurnedRestBytes(job); }

// LibTorch's caching allocator holds free pieces beside those in use.
int64_t ReservedBytes(int64_t used) { return used * 5 / 4; }

int64_t OrEnough(int64_t memory) { return memory > 0 ? memory : INT64_MAX; }

StatesPlace PlaceStates(const JobShapes& job, const Place& place) {
  const int64_t host = OrEnough(place.host_memory);
  return ChooseStatesPlace(
      StatesBytes(job),
      job.gpu ? GpuStatesBudget(OrEnough(place.device_memory), host) : CpuStatesBudget(host));
}

}  // namespace

PeakMemory CountMemory(const JobShapes& job, const Place& place) {
  const StatesPlace states = PlaceStates(job, place);
  const int64_t spilled = states == StatesPlace::kFile ? StatesBytes(job) : 0;
  const int64_t pinned = states == StatesPlace::kPinnedHost ? PinnedBytes(StatesBytes(job)) : 0;
  const int64_t files = std::max(TextBytes(job), RestBytes(job));
  const int64_t kept = (states == StatesPlace::kDevice ? StatesBytes(job) : 0) + RotaryBytes(job) +
                       RotationBytes(job);
  const int64_t make = MakeRotationBytes(job);
  const int64_t parts = std::max({EndsBytes(job), LayerBytes(job), TurnedLayerBytes(job)});
  if (!job.gpu) return {kCpuProcess + std::max(kept + std::max(files, parts), make), 0, spilled};
  return {kGpuProcess + pinned + std::max(files, make),
          kGpuContext + ReservedBytes(kept + std::max(parts, TurnedRestBytes(job))), spilled};
}

}  // namespace nibble
