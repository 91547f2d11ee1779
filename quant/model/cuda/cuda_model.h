// A decoder's weights on a GPU and its forward over the fused kernels: the layer of
// decoder/forward.cc, with every residual add, norm, activation and rounding inside of a kernel
// between two linears. Hidden states are bf16.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "absl/status/statusor.h"
#include "quant/kernels/cuda/norm.h"
#include "quant/kernels/cuda/paged_kv.h"
#include "quant/model/cuda/linear_group.h"
#include "quant/model/cuda/step_plan.h"
#include "quant/model/decoder/decoder.h"

namespace nibble {

struct CudaNorm {
  at::Tensor gain;  // bf16 [hidden]
  at::Tensor bias;  // undefined: RMSNorm
  float eps = 1e-5f;
  DeviceNorm view() const;
};

struct CudaLayer {
  CudaNorm attention_norm, mlp_norm;
  LinearGroup attention_in, attention_out, mlp_in, mlp_out;
};

struct CudaModel {
  ModelConfig config;
  at::Device device = at::kCPU;
  at::Tensor embedding;                // bf16 [vocab, embed_dim]
  at::Tensor positions;                // bf16 [context, hidden], OPT: its table from row 2 on
  at::Tensor project_in, project_out;  // bf16, opt-350m only
  std::optional<CudaNorm> norm;        // final
  at::Tensor head;                     // bf16 [vocab rounded up to 8, embed_dim]
  at::Tensor frequencies;              // f32 [head_dim / 2], undefined for OPT
  std::vector<CudaLayer> layers;

  AttentionShape attention_shape() const;
  int64_t weight_bytes() const;
  size_t WorkspaceBytes(int64_t tokens) const;  // of any of its linears
  // Linears groups that run over true values, of all.
  std::pair<int64_t, int64_t> true_value_groups() const;
};

// UNIMPLEMENTED for a head_dim that attention has no kernel for.
absl::StatusOr<CudaModel> LoadCudaModel(const DecoderLoader& loader);

// Keys and values of every layer.
struct CudaCache {
  KvFormat format = KvFormat::kBf16;
  std::vector<at::Tensor> k;  // [blocks, kKvBlockSize, kv_heads, StoredHeadDim]
  std::vector<at::Tensor> v;
};
CudaCache MakeCudaCache(const CudaModel& model, KvFormat format, int64_t blocks);
int64_t CudaBlockBytes(const ModelConfig& config, KvFormat format);  // of one block, all layers

// A step as the kernels see it: `image` on the device, laid out by PlanStep.
struct CudaStep {
  StepPlan plan;
  const int32_t* image = nullptr;
};

// Runs the step's tokens; their keys and values go to the cache. Returns the hidden states after
// the final norm: bf16 [tokens, hidden]. Queued on the current stream, allocates by LibTorch; may
// be captured. Errors are thrown.
at::Tensor RunStep(const CudaModel& model, const CudaStep& step, const CudaCache& cache,
                   const at::Tensor& workspace);

// Logits of rows of RunStep's states: bf16 [rows, vocab rounded up to 8]. Up to kDecodeRows rows
// are multiplied as so many, so that a row's logits don't depend on how many there are.
inline constexpr int64_t kDecodeRows = 64;
at::Tensor HeadLogits(const CudaModel& model, const at::Tensor& states);

}  // namespace nibble
