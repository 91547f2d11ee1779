#include "quant/model/cuda/cuda_model.h"

#include <algorithm>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/kernels/device/bf16.h"
#include "quant/kernels/device/torch_device.h"

namespace nibble {
namespace {

// OPT's learned positions begin at row 2.
constexpr int64_t kOptPositionOffset = 2;
constexpr int64_t kHeadRows = 8;  // the sampler wants rows of a multiple of these

CudaNorm ToCuda(const NormWeights& norm) {
  return {.gain = norm.gain.to(at::kBFloat16),
          .bias = norm.bias.defined() ? norm.bias.to(at::kBFloat16) : at::Tensor(),
          .eps = static_cast<float>(norm.eps)};
}

absl::StatusOr<CudaLayer> ToCuda(const DecoderLayer& layer, at::Device device) {
  const auto group = [&](InputGroup input) {
    std::vector<const LayerLinear*> linears;
    for (const LayerLinear& linear : layer.linears) {
      if (linear.input == input) linears.push_back(&linear);
    }
    return LinearGroup::Make(linears, device);
  };
  CudaLayer out{.attention_norm = ToCuda(layer.attention_norm), .mlp_norm = ToCuda(layer.mlp_norm)};
  NIBBLE_ASSIGN_OR_RETURN(out.attention_in, group(InputGroup::kAttentionIn));
  NIBBLE_ASSIGN_OR_RETURN(out.attention_out, group(InputGroup::kAttentionOut));
  NIBBLE_ASSIGN_OR_RETURN(out.mlp_in, group(InputGroup::kMlpIn));
  NIBBLE_ASSIGN_OR_RETURN(out.mlp_out, group(InputGroup::kMlpOut));
  return out;
}

void TakeEnds(DecoderEnds ends, CudaModel& model) {
  model.embedding = ends.embedding.weight;
  if (ends.positions.defined()) {
    model.positions = ends.positions.narrow(0, kOptPositionOffset, model.config.context);
  }
  if (ends.project_in) model.project_in = ends.project_in->weight;
  if (ends.project_out) model.project_out = ends.project_out->weight;
  if (ends.norm) model.norm = ToCuda(*ends.norm);
  const at::Tensor& head = ends.head.weight;
  const int64_t missing = (kHeadRows - head.size(0) % kHeadRows) % kHeadRows;
  model.head = missing == 0 ? head : at::constant_pad_nd(head, {0, 0, 0, missing});
}

std::vector<const LinearGroup*> Groups(const CudaModel& model) {
  std::vector<const LinearGroup*> groups;
  for (const CudaLayer& layer : model.layers) {
    for (const LinearGroup* group :
         {&layer.attention_in, &layer.attention_out, &layer.mlp_in, &layer.mlp_out}) {
      groups.push_back(group);
    }
  }
  return groups;
}

absl::Status CheckHeadDim(const ModelConfig& config) {
  for (const int64_t known : {64, 80, 100, 128}) {
    if (config.head_dim == known) return absl::OkStatus();
  }
  return absl::UnimplementedError(
      StrCat("head_dim: found ", config.head_dim, ", expected 64, 80, 100 or 128 on a GPU"));
}

}  // namespace

DeviceNorm CudaNorm::view() const {
  return {.gain = Bf16(gain), .bias = bias.defined() ? Bf16(bias) : nullptr, .eps = eps};
}

AttentionShape CudaModel::attention_shape() const {
  return {.group = static_cast<int32_t>(config.heads / config.kv_heads),
          .kv_heads = static_cast<int32_t>(config.kv_heads),
          .page_size = static_cast<int32_t>(kKvBlockSize)};
}

int64_t CudaModel::weight_bytes() const {
  int64_t bytes = 0;
  for (const at::Tensor& end : {embedding, positions, project_in, project_out}) {
    if (end.defined()) bytes += static_cast<int64_t>(end.nbytes());
  }
  if (!config.tied_embeddings) bytes += static_cast<int64_t>(head.nbytes());
  for (const LinearGroup* group : Groups(*this)) bytes += group->weight_bytes();
  return bytes;
}

size_t CudaModel::WorkspaceBytes(int64_t tokens) const {
  size_t bytes = 0;
  for (const LinearGroup* group : Groups(*this)) {
    bytes = std::max(bytes, group->WorkspaceBytes(tokens));
  }
  return bytes;
}

std::pair<int64_t, int64_t> CudaModel::true_value_groups() const {
  const std::vector<const LinearGroup*> groups = Groups(*this);
  const int64_t true_values =
      std::ranges::count_if(groups, [](const LinearGroup* group) { return !group->takes_codes(); });
  return {true_values, static_cast<int64_t>(groups.size())};
}

absl::StatusOr<CudaModel> LoadCudaModel(const DecoderLoader& loader) {
  NIBBLE_RETURN_IF_ERROR(CheckHeadDim(loader.config()));
  return CatchTorch([&]() -> absl::StatusOr<CudaModel> {
    CudaModel model{.config = loader.config(), .device = TorchDevice(loader.device())};
    NIBBLE_ASSIGN_OR_RETURN(DecoderEnds ends, loader.LoadEnds());
    TakeEnds(std::move(ends), model);
    if (model.config.family == Family::kLlama) {
      model.frequencies = RotaryFrequencies(model.config).to(model.device);
    }
    for (int64_t i = 0; i < model.config.layers; ++i) {
      NIBBLE_ASSIGN_OR_RETURN(const DecoderLayer layer, loader.LoadLayer(i));
      NIBBLE_ASSIGN_OR_RETURN(CudaLayer on_device, ToCuda(layer, model.device));
      model.layers.push_back(std::move(on_device));
    }
    return model;
  });
}

CudaCache MakeCudaCache(const CudaModel& model, KvFormat format, int64_t blocks) {
  const ModelConfig& config = model.config;
  const at::TensorOptions options =
      at::TensorOptions(format == KvFormat::kBf16 ? at::kBFloat16 : at::kByte).device(model.device);
  CudaCache cache{.format = format};
  for (int64_t i = 0; i < config.layers; ++i) {
    for (std::vector<at::Tensor>* part : {&cache.k, &cache.v}) {
      part->push_back(at::zeros(
          {blocks, kKvBlockSize, config.kv_heads, StoredHeadDim(static_cast<int>(config.head_dim))},
          options));
    }
  }
  return cache;
}

int64_t CudaBlockBytes(const ModelConfig& config, KvFormat format) {
  const int64_t element = format == KvFormat::kBf16 ? 2 : 1;
  return 2 * config.layers * kKvBlockSize * config.kv_heads *
         StoredHeadDim(static_cast<int>(config.head_dim)) * element;
}

}  // namespace nibble
