// The forward over the fused kernels: embeddings, layers, logits.
#include <utility>

#include "quant/kernels/cuda/activations.h"
#include "quant/kernels/cuda/attention.h"
#include "quant/kernels/cuda/embedding.h"
#include "quant/kernels/cuda/rotary.h"
#include "quant/kernels/device/bf16.h"
#include "quant/kernels/device/launch.h"
#include "quant/model/cuda/cuda_model.h"

namespace nibble {
namespace {

uint8_t* Codes(const GroupInput& x, int64_t first_token = 0) {
  return x.codes.mutable_data_ptr<uint8_t>() + first_token * x.codes.size(1);
}
float* Scales(const GroupInput& x, int64_t first_token = 0) {
  return x.scales.mutable_data_ptr<float>() + first_token;
}

// One regime's tokens of the step.
struct AttentionPart {
  AttentionPlan plan;
  const int32_t* image;
  int64_t first_token;
  at::Tensor workspace;
};

// Runs one step; its methods follow a layer from top to bottom.
class StepForward {
 public:
  StepForward(const CudaModel& model, const CudaStep& step, const CudaCache& cache,
              at::Tensor workspace)
      : model_(model),
        config_(model.config),
        step_(step),
        at_(step.plan.limits),
        cache_(cache),
        workspace_(std::move(workspace)),
        scope_(model.device),
        tokens_(step.plan.tokens) {
    if (step.plan.decode) AddPart(*step.plan.decode, at_.decode, 0);
    if (step.plan.prefill) {
      AddPart(*step.plan.prefill, at_.prefill, step.plan.decode ? step.plan.decode->tokens : 0);
    }
  }

  at::Tensor Run() {
    EmbedTokens();
    for (size_t i = 0; i < model_.layers.size(); ++i) {
      const CudaLayer& layer = model_.layers[i];
      const at::Tensor qkv =
          Multiply(layer.attention_in, InputOf(layer.attention_in, layer.attention_norm));
      delta_ = Multiply(layer.attention_out, Attend(i, layer.attention_out, qkv));
      NormAfter(layer.attention_norm);
      const at::Tensor up = Multiply(layer.mlp_in, InputOf(layer.mlp_in, layer.mlp_norm));
      delta_ = Multiply(layer.mlp_out, Activate(layer.mlp_out, up));
      NormAfter(layer.mlp_norm);
    }
    return FinalNorm();
  }

 private:
  cudaStream_t stream() const { return scope_.stream(); }

  void AddPart(const AttentionPlan& plan, int64_t image, int64_t first_token) {
    const int64_t bytes = AttentionWorkspaceBytes(plan.limits, static_cast<int>(config_.head_dim));
    parts_.push_back({plan, step_.image + image, first_token,
                      at::empty({bytes}, at::TensorOptions(at::kByte).device(model_.device))});
  }

  at::Tensor Multiply(const LinearGroup& group, const GroupInput& x) const {
    return group.Run(x, workspace_);
  }

  GroupInput InputFor(const LinearGroup& group) const {
    return group.takes_codes() ? MakeCodes(tokens_, group.cols(), model_.device)
                               : MakeValues(tokens_, group.cols(), model_.device);
  }

  void EmbedTokens() {
    const int64_t width = model_.embedding.size(1);
    hidden_ = MakeValues(tokens_, width, model_.device).values;
    const bool learned = model_.positions.defined();
    const PositionTable table = {.rows = learned ? Bf16(model_.positions) : nullptr,
                                 .positions = step_.image + at_.positions,
                                 .count = learned ? model_.positions.size(0) : 0};
    const bool direct = !model_.project_in.defined();
    ThrowIfError(Embed(Bf16(model_.embedding), config_.vocab, width, step_.image + at_.ids,
                       learned && direct ? &table : nullptr, tokens_, MutableBf16(hidden_),
                       stream()));
    if (direct) return;
    hidden_ = at::linear(hidden_, model_.project_in);
    delta_ = MakeValues(tokens_, config_.hidden, model_.device).values;
    ThrowIfError(Embed(Bf16(model_.positions), model_.positions.size(0), config_.hidden,
                       step_.image + at_.positions, nullptr, tokens_, MutableBf16(delta_),
                       stream()));
    hidden_ = hidden_ + delta_;
    delta_ = at::Tensor();
  }

  // A group's input from the residual stream, which takes up what the last group made of it.
  GroupInput InputOf(const LinearGroup& group, const CudaNorm& norm) {
    if (!config_.pre_norm) return Rounded(group, hidden_);
    GroupInput x = InputFor(group);
    const at::Tensor delta = std::exchange(delta_, {});
    const __nv_bfloat16* add = delta.defined() ? Bf16(delta) : nullptr;
    ThrowIfError(group.takes_codes()
                     ? AddNormQuantize(norm.view(), MutableBf16(hidden_), add, tokens_,
                                       config_.hidden, Codes(x), Scales(x), stream())
                     : AddNorm(norm.view(), MutableBf16(hidden_), add, tokens_, config_.hidden,
                               MutableBf16(x.values), stream()));
    return x;
  }

  GroupInput Rounded(const LinearGroup& group, const at::Tensor& values) const {
    if (!group.takes_codes()) return {.values = values};
    GroupInput x = InputFor(group);
    ThrowIfError(QuantizeActivationsE4M3(Bf16(values), tokens_, group.cols(), Codes(x), Scales(x),
                                         stream()));
    return x;
  }

  // Where norms stand after the residual (opt-350m).
  void NormAfter(const CudaNorm& norm) {
    if (config_.pre_norm) return;
    const at::Tensor delta = std::exchange(delta_, {});
    ThrowIfError(AddNorm(norm.view(), MutableBf16(hidden_), Bf16(delta), tokens_, config_.hidden,
                         MutableBf16(hidden_), stream()));
  }

  PagedKv CacheOf(size_t layer) const {
    return {.k = cache_.k[layer].mutable_data_ptr(),
            .v = cache_.v[layer].mutable_data_ptr(),
            .format = cache_.format,
            .page_size = static_cast<int>(kKvBlockSize),
            .kv_heads = static_cast<int>(config_.kv_heads),
            .head_dim = static_cast<int>(config_.head_dim)};
  }

  GroupInput Attend(size_t layer, const LinearGroup& next, const at::Tensor& qkv) const {
    GroupInput x = InputFor(next);
    const PagedKv kv = CacheOf(layer);
    const int64_t row = config_.heads * StoredHeadDim(kv.head_dim);
    const at::Tensor q = MakeValues(tokens_, row, model_.device).values;
    for (const AttentionPart& part : parts_) {
      const int64_t first = part.first_token;
      const AttentionImage image(part.plan.limits);
      const QkvTokens step = {.qkv = Bf16(qkv) + first * qkv.size(1),
                              .positions = part.image + image.positions,
                              .slots = part.image + image.slots,
                              .frequencies = model_.frequencies.defined()
                                                 ? model_.frequencies.const_data_ptr<float>()
                                                 : nullptr,
                              .tokens = part.plan.tokens,
                              .heads = static_cast<int>(config_.heads)};
      ThrowIfError(RotateAndAppend(step, kv, MutableBf16(q) + first * row, stream()));
      const AttentionCall call = {.plan = part.plan,
                                  .image = part.image,
                                  .kv = kv,
                                  .q = Bf16(q) + first * row,
                                  .workspace = part.workspace.data_ptr()};
      ThrowIfError(
          next.takes_codes()
              ? AttendQuantize(call, Codes(x, first), Scales(x, first), stream())
              : nibble::Attend(call, MutableBf16(x.values) + first * next.cols(), stream()));
    }
    return x;
  }

  GroupInput Activate(const LinearGroup& next, const at::Tensor& up) const {
    GroupInput x = InputFor(next);
    const bool silu = config_.family == Family::kLlama;
    if (next.takes_codes()) {
      ThrowIfError((silu ? SiluMulQuantize : ReluQuantize)(Bf16(up), tokens_, next.cols(), Codes(x),
                                                           Scales(x), stream()));
    } else {
      ThrowIfError(
          (silu ? SiluMul : Relu)(Bf16(up), tokens_, next.cols(), MutableBf16(x.values), stream()));
    }
    return x;
  }

  at::Tensor FinalNorm() {
    if (!model_.norm) return delta_.defined() ? hidden_ + delta_ : hidden_;
    at::Tensor states = MakeValues(tokens_, config_.hidden, model_.device).values;
    ThrowIfError(AddNorm(model_.norm->view(), MutableBf16(hidden_),
                         delta_.defined() ? Bf16(delta_) : nullptr, tokens_, config_.hidden,
                         MutableBf16(states), stream()));
    return states;
  }

  const CudaModel& model_;
  const ModelConfig& config_;
  const CudaStep& step_;
  const StepImage at_;
  const CudaCache& cache_;
  const at::Tensor workspace_;
  const CudaScope scope_;
  const int64_t tokens_;
  std::vector<AttentionPart> parts_;
  at::Tensor hidden_;
  at::Tensor delta_;  // not yet added to hidden_
};

}  // namespace

at::Tensor RunStep(const CudaModel& model, const CudaStep& step, const CudaCache& cache,
                   const at::Tensor& workspace) {
  return StepForward(model, step, cache, workspace).Run();
}

at::Tensor HeadLogits(const CudaModel& model, const at::Tensor& states) {
  const int64_t rows = states.size(0);
  at::Tensor x = states;
  if (rows < kDecodeRows) {
    x = at::empty({kDecodeRows, states.size(1)}, states.options());
    x.narrow(0, 0, rows).copy_(states);
  }
  if (model.project_out.defined()) x = at::linear(x, model.project_out);
  return at::linear(x, model.head).narrow(0, 0, rows);
}

}  // namespace nibble
