// Decode steps as CUDA graphs: captured at load for a ladder of batch sizes and amounts of
// attention work, replayed for any step that fits. A graph holds everything of its step: the copy
// of its image, the forward, the logits, the draw and the copy of the tokens back.
#pragma once

#include <ATen/cuda/CUDAGraph.h>

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/model/cuda/cuda_model.h"

namespace nibble {

// Batch sizes of graphs, rising, the last of them `most`.
std::vector<int32_t> GraphBatches(int32_t most);
// Chunks of keys a sequence, rising, the last enough for `context` keys.
std::vector<int32_t> GraphChunks(int32_t kv_heads, int64_t context);

// One captured step.
struct DecodeGraph {
  StepLimits limits;
  at::Tensor image;         // pinned host memory, int32: written before a replay
  at::Tensor device_image;  // int32
  at::Tensor states;        // bf16 [tokens, hidden]
  at::Tensor tokens;        // pinned host memory, int32 [draws]: there once the stream has ended
  at::cuda::CUDAGraph graph;
};

class DecodeGraphs {
 public:
  // Captures on the current stream, which is not the default one. `model`, `cache` and `workspace`
  // stay as they are as long as this is used.
  static absl::StatusOr<DecodeGraphs> Capture(const CudaModel& model, const CudaCache& cache,
                                              const at::Tensor& workspace, int32_t max_sequences);

  // Lays the sequences out, all to be drawn, in the smallest graph that takes them; null where none
  // does: too many of them, or one with several new tokens.
  absl::StatusOr<DecodeGraph*> Plan(absl::Span<const CudaSequence> sequences);

  size_t size() const { return graphs_.size(); }

 private:
  std::vector<std::unique_ptr<DecodeGraph>> graphs_;  // by batch size, then work
};

// Tokens drawn from logits [draws, vocab rounded up to 8] as the image says: int32 [draws].
at::Tensor DrawTokens(const CudaModel& model, const CudaStep& step, const at::Tensor& logits);

}  // namespace nibble
