#include "quant/model/cuda/decode_graphs.h"

#include <algorithm>

#include "quant/base/status_macros.h"
#include "quant/kernels/cuda/launch.h"
#include "quant/kernels/cuda/sampling.h"
#include "quant/kernels/device/bf16.h"
#include "quant/kernels/device/launch.h"

namespace nibble {
namespace {

at::Tensor PinnedInts(int64_t count) {
  return at::zeros({count}, at::TensorOptions(at::kInt).pinned_memory(true));
}

absl::Span<int32_t> Ints(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr<int32_t>(), static_cast<size_t>(tensor.numel())};
}

void CopyAsync(const at::Tensor& to, const at::Tensor& from, cudaStream_t stream) {
  ThrowIfError(CheckCuda(cudaMemcpyAsync(to.mutable_data_ptr(), from.const_data_ptr(),
                                         from.nbytes(), cudaMemcpyDefault, stream),
                         "cudaMemcpyAsync"));
}

// A plan of no sequences covers, padded, all that fits the limits.
absl::StatusOr<std::unique_ptr<DecodeGraph>> MakeGraph(const StepLimits& limits,
                                                       at::Device device) {
  auto graph = std::make_unique<DecodeGraph>();
  graph->limits = limits;
  const int64_t elements = StepImage(limits).end;
  graph->image = PinnedInts(elements);
  graph->device_image = at::zeros({elements}, at::TensorOptions(at::kInt).device(device));
  graph->tokens = PinnedInts(limits.draws);
  NIBBLE_RETURN_IF_ERROR(PlanStep(limits, {}, Ints(graph->image)).status());
  return graph;
}

}  // namespace

std::vector<int32_t> GraphBatches(int32_t most) {
  std::vector<int32_t> batches;
  for (int32_t batch = 1; batch < most;) {
    batches.push_back(batch);
    batch += batch < 8 ? batch : batch < 32 ? 8 : batch < 64 ? 16 : 32;
  }
  batches.push_back(most);
  return batches;
}

std::vector<int32_t> GraphChunks(int32_t kv_heads, int64_t context) {
  const int32_t most = MostDecodeChunks(context, kv_heads);
  std::vector<int32_t> chunks;
  for (const int32_t some : {1, 4, 8}) {
    if (some < most) chunks.push_back(some);
  }
  chunks.push_back(most);
  return chunks;
}

absl::StatusOr<DecodeGraphs> DecodeGraphs::Capture(const CudaModel& model, const CudaCache& cache,
                                                   const at::Tensor& workspace,
                                                   int32_t max_sequences) {
  const CudaScope scope(model.device);
  DecodeGraphs graphs;
  at::cuda::MempoolId_t pool = at::cuda::graph_pool_handle();
  for (const int32_t batch : GraphBatches(max_sequences)) {
    for (const int32_t chunks :
         GraphChunks(model.attention_shape().kv_heads, model.config.context)) {
      const StepLimits limits =
          DecodeLimits(model.attention_shape(), batch, chunks, model.config.context);
      NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<DecodeGraph> graph, MakeGraph(limits, model.device));
      NIBBLE_ASSIGN_OR_RETURN(const StepPlan empty, PlanStep(limits, {}, Ints(graph->image)));
      const CudaStep step = {.plan = empty.Padded(),
                             .image = graph->device_image.const_data_ptr<int32_t>()};
      const auto run = [&] {
        CopyAsync(graph->device_image, graph->image, scope.stream());
        graph->states = RunStep(model, step, cache, workspace);
        const at::Tensor drawn = DrawTokens(model, step, HeadLogits(model, graph->states));
        CopyAsync(graph->tokens, drawn, scope.stream());
      };
      run();  // loads the kernels, which a capture may not
      graph->graph.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
      run();
      graph->graph.capture_end();
      graphs.graphs_.push_back(std::move(graph));
    }
  }
  return graphs;
}

absl::StatusOr<DecodeGraph*> DecodeGraphs::Plan(absl::Span<const CudaSequence> sequences) {
  std::vector<CudaSequence> drawn(sequences.begin(), sequences.end());
  for (CudaSequence& sequence : drawn) {
    if (sequence.tokens.size() != 1) return nullptr;
    sequence.sample = true;
  }
  for (const std::unique_ptr<DecodeGraph>& graph : graphs_) {
    if (graph->limits.tokens < static_cast<int64_t>(drawn.size())) continue;
    const absl::Status planned = PlanStep(graph->limits, drawn, Ints(graph->image)).status();
    if (planned.ok()) return graph.get();
    if (!absl::IsResourceExhausted(planned)) return planned;
  }
  return nullptr;
}

at::Tensor DrawTokens(const CudaModel& model, const CudaStep& step, const at::Tensor& logits) {
  const CudaScope scope(model.device);
  const StepImage at(step.plan.limits);
  at::Tensor tokens = at::empty({step.plan.draws}, logits.options().dtype(at::kInt));
  const LogitRows<__nv_bfloat16> rows = {.logits = Bf16(logits),
                                         .rows = step.plan.draws,
                                         .vocab = model.config.vocab,
                                         .stride = logits.size(1)};
  ThrowIfError(SampleTokens(rows, reinterpret_cast<const SamplingRow*>(step.image + at.draws),
                            step.image + at.draw_positions, tokens.mutable_data_ptr<int32_t>(),
                            scope.stream()));
  return tokens;
}

}  // namespace nibble
