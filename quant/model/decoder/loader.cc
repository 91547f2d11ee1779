// Builds the decoder's parts from a checkpoint's or an artifact's tensors.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/gptq/gptq.h"
#include "quant/kernels/device/torch_device.h"
#include "quant/model/decoder/decoder.h"

namespace nibble {
namespace {

absl::StatusOr<at::ScalarType> FloatType(const std::string& name, DType dtype) {
  if (dtype == DType::kF32) return at::kFloat;
  if (dtype == DType::kF16) return at::kHalf;
  if (dtype == DType::kBF16) return at::kBFloat16;
  return absl::InvalidArgumentError(StrCat("tensor \"", name, "\": found the type ",
                                           DTypeName(dtype), ", expected F32, F16 or BF16"));
}

class TensorReader {
 public:
  // `rotation` null: every tensor is as stored.
  TensorReader(const TensorSource& tensors, Compute compute, const Device& device,
               const Rotation* rotation)
      : tensors_(tensors), compute_(compute), device_(device), rotation_(rotation) {}

  // The working type, on the device.
  at::TensorOptions options() const {
    return at::TensorOptions(WorkingType(compute_, device_)).device(TorchDevice(device_));
  }

  // In the working type, rounded to bf16 first if so computed.
  absl::StatusOr<at::Tensor> Read(const std::string& name,
                                  const std::vector<int64_t>& shape) const {
    return ReadAs(name, shape, WorkingType(compute_, device_));
  }

  absl::StatusOr<NormWeights> ReadNorm(const ModelConfig& config, const std::string& name) const {
    NormWeights norm;
    norm.eps = config.norm_eps;
    NIBBLE_ASSIGN_OR_RETURN(norm.gain,
                            ReadAs(StrCat(name, ".weight"), {config.hidden}, at::kFloat));
    if (config.family == Family::kOpt) {
      NIBBLE_ASSIGN_OR_RETURN(norm.bias,
                              ReadAs(StrCat(name, ".bias"), {config.hidden}, at::kFloat));
    }
    return norm;
  }

  // LoRC's factors, [rows, rank] and [rank, cols].
  absl::Status ReadLorc(const std::string& name, int64_t rows, int64_t cols, int64_t rank,
                        LinearWeights& weights) const {
    NIBBLE_ASSIGN_OR_RETURN(weights.lorc_a, Read(StrCat(name, ".lorc_a"), {rows, rank}));
    NIBBLE_ASSIGN_OR_RETURN(weights.lorc_b, Read(StrCat(name, ".lorc_b"), {rank, cols}));
    return absl::OkStatus();
  }

  // Of any name and shape.
  absl::StatusOr<NamedTensor> ReadBFloat16(const std::string& name) const {
    if (turns(name)) {
      NIBBLE_ASSIGN_OR_RETURN(const at::Tensor turned, ReadAs(name, {}, at::kFloat));
      return BFloat16Tensor(name, turned);
    }
    NIBBLE_ASSIGN_OR_RETURN(const TensorView view, tensors_.Find(name));
    absl::StatusOr<NamedTensor> tensor = Narrow(name, view);
    tensors_.Release(view);
    return tensor;
  }

  absl::StatusOr<at::Tensor> ReadStored(const std::string& name,
                                        const std::vector<int64_t>& shape) const {
    NIBBLE_ASSIGN_OR_RETURN(const TensorView view, tensors_.Find(name, shape));
    absl::StatusOr<at::Tensor> tensor = device_.is_cuda() ? Upload(name, view) : Widen(name, view);
    tensors_.Release(view);
    return tensor;
  }

 private:
  bool turns(const std::string& name) const {
    return rotation_ != nullptr && rotation_->Turns(name);
  }

  // `shape` is that of a tensor that does not turn.
  absl::StatusOr<at::Tensor> ReadAs(const std::string& name, const std::vector<int64_t>& shape,
                                    at::ScalarType type) const {
    NIBBLE_ASSIGN_OR_RETURN(
        at::Tensor tensor,
        turns(name) ? rotation_->Read(
                          name, [this](const auto& n, const auto& s) { return ReadStored(n, s); })
                    : ReadStored(name, shape));
    if (compute_ == Compute::kBf16) tensor = tensor.to(at::kBFloat16);
    const auto [least, most] = at::aminmax(tensor);
    if (!std::isfinite(least.item<float>()) || !std::isfinite(most.item<float>())) {
      return absl::InvalidArgumentError(StrCat("tensor \"", name, "\": found values from ",
                                               least.item<float>(), " to ", most.item<float>(),
                                               ", expected finite numbers"));
    }
    return tensor.to(type);
  }

  static absl::StatusOr<at::Tensor> Widen(const std::string& name, const TensorView& view) {
    at::Tensor tensor = at::empty(view.shape, at::kFloat);
    NIBBLE_RETURN_IF_ERROR(
        WidenToFloat(name, view, absl::MakeSpan(tensor.data_ptr<float>(), tensor.numel())));
    return tensor;
  }

  // A piece at a time: what is not quantized may be large.
  static absl::StatusOr<NamedTensor> Narrow(const std::string& name, const TensorView& view) {
    constexpr int64_t kPiece = int64_t{1} << 18;
    const int64_t elements = view.elements();
    NamedTensor out{name, DType::kBF16, view.shape, std::vector<uint8_t>(2 * elements)};
    std::vector<float> values(std::min(kPiece, elements));
    for (int64_t begin = 0; begin < elements; begin += kPiece) {
      const int64_t count = std::min(kPiece, elements - begin);
      const int64_t size = static_cast<int64_t>(view.bytes.size()) / elements;
      const TensorView piece = {
          view.dtype, {count}, view.bytes.subspan(begin * size, count * size)};
      NIBBLE_RETURN_IF_ERROR(WidenToFloat(name, piece, absl::MakeSpan(values).first(count)));
      for (int64_t i = 0; i < count; ++i) {
        const uint16_t bits = FloatToBFloat16(values[i]);
        std::memcpy(out.bytes.data() + 2 * (begin + i), &bits, sizeof(bits));
      }
    }
    return out;
  }

  // As stored: the device converts faster than the host.
  absl::StatusOr<at::Tensor> Upload(const std::string& name, const TensorView& view) const {
    NIBBLE_ASSIGN_OR_RETURN(const at::ScalarType type, FloatType(name, view.dtype));
    at::Tensor bytes = at::empty({static_cast<int64_t>(view.bytes.size())},
                                 at::TensorOptions(at::kByte).device(TorchDevice(device_)));
    bytes.copy_(at::from_blob(const_cast<uint8_t*>(view.bytes.data()), bytes.sizes(), at::kByte));
    return bytes.view(type).view(view.shape);
  }

  const TensorSource& tensors_;
  const Compute compute_;
  const Device device_;
  const Rotation* const rotation_;
};

bool IsExcluded(const ArtifactSpec& artifact, const std::string& name) {
  return std::find(artifact.excluded.begin(), artifact.excluded.end(), name) !=
         artifact.excluded.end();
}

absl::StatusOr<LayerLinear> ReadLinear(const ModelConfig& config, const LinearInfo& linear,
                                       const TensorSource& tensors, const TensorReader& reader,
                                       const std::optional<ArtifactSpec>& artifact,
                                       Purpose purpose) {
  const auto& [name, input, layer, rows, cols] = linear;
  LayerLinear out{.name = name, .input = input};
  const bool quantized = artifact && !IsExcluded(*artifact, name);
  std::optional<QuantizedMatrix> matrix;
  if (quantized && artifact->weights) {
    NIBBLE_ASSIGN_OR_RETURN(matrix,
                            ReadQuantizedMatrix(tensors, name, *artifact->weights, rows, cols));
    if (purpose == Purpose::kQuantize) {
      out.weights.weight = Dequantize(*matrix, reader.options());
    }
  } else {
    NIBBLE_ASSIGN_OR_RETURN(out.weights.weight, reader.Read(StrCat(name, ".weight"), {rows, cols}));
  }
  if (quantized) {
    out.activation = artifact->activations;
    if (artifact->lorc_rank > 0) {
      NIBBLE_RETURN_IF_ERROR(reader.ReadLorc(name, rows, cols, artifact->lorc_rank, out.weights));
    }
  }
  if (HasBias(config, input)) {
    NIBBLE_ASSIGN_OR_RETURN(out.weights.bias, reader.Read(StrCat(name, ".bias"), {rows}));
  }
  if (purpose == Purpose::kRun) Arrange(matrix ? &*matrix : nullptr, out.weights);
  if (purpose == Purpose::kPrepare) out.matrix = std::move(matrix);
  return out;
}

// A weight outside the layers.
absl::StatusOr<LinearWeights> ReadEnd(const TensorReader& reader, const std::string& name,
                                      const std::vector<int64_t>& shape, Purpose purpose) {
  LinearWeights end;
  NIBBLE_ASSIGN_OR_RETURN(end.weight, reader.Read(name, shape));
  if (purpose == Purpose::kRun) Arrange(nullptr, end);
  return end;
}

absl::Status ReadOptEnds(const ModelConfig& config, const std::string& prefix,
                         const TensorReader& reader, Purpose purpose, DecoderEnds& ends) {
  NIBBLE_ASSIGN_OR_RETURN(ends.positions, reader.Read(StrCat(prefix, "embed_positions.weight"),
                                                      {config.context + 2, config.hidden}));
  if (config.embed_dim != config.hidden) {
    NIBBLE_ASSIGN_OR_RETURN(ends.project_in, ReadEnd(reader, StrCat(prefix, "project_in.weight"),
                                                     {config.hidden, config.embed_dim}, purpose));
    NIBBLE_ASSIGN_OR_RETURN(ends.project_out, ReadEnd(reader, StrCat(prefix, "project_out.weight"),
                                                      {config.embed_dim, config.hidden}, purpose));
  }
  return absl::OkStatus();
}

}  // namespace

NamedTensor BFloat16Tensor(std::string name, const at::Tensor& tensor) {
  NamedTensor out{std::move(name), DType::kBF16, tensor.sizes().vec(), {}};
  out.bytes.resize(2 * tensor.numel());
  at::from_blob(out.bytes.data(), tensor.sizes(), at::kBFloat16).copy_(tensor);
  return out;
}

absl::StatusOr<std::unique_ptr<DecoderLoader>> DecoderLoader::Open(
    const std::filesystem::path& folder, Compute compute, const Device& device, Purpose purpose) {
  NIBBLE_RETURN_IF_ERROR(PrepareDevice(device));
  auto loader = std::unique_ptr<DecoderLoader>(new DecoderLoader());
  NIBBLE_ASSIGN_OR_RETURN(loader->config_, LoadModelConfig(folder));
  if (IsArtifact(folder)) {
    NIBBLE_ASSIGN_OR_RETURN(loader->artifact_, ReadArtifact(folder, Verify::kChecksums));
  }
  NIBBLE_ASSIGN_OR_RETURN(loader->tensors_, TensorSource::Open(folder));
  loader->compute_ = compute;
  loader->device_ = device;
  // Decoder multiplies true values on a GPU.
  loader->purpose_ = purpose == Purpose::kRun && device.is_cuda() ? Purpose::kQuantize : purpose;
  return loader;
}

absl::Status DecoderLoader::CheckRotatable() const {
  return CatchTorch([&]() -> absl::Status {
    NIBBLE_ASSIGN_OR_RETURN(const std::string prefix, FindPrefix(*tensors_, config_.family));
    const TensorReader reader(*tensors_, compute_, device_, nullptr);
    return nibble::CheckRotatable(config_, prefix, [&](const auto& name, const auto& shape) {
      return reader.ReadStored(name, shape);
    });
  });
}

absl::Status DecoderLoader::Rotate(uint64_t seed) {
  return CatchTorch([&]() -> absl::Status {
    NIBBLE_ASSIGN_OR_RETURN(const std::string prefix, FindPrefix(*tensors_, config_.family));
    rotation_ = std::make_unique<const Rotation>(config_, prefix, seed, TorchDevice(device_));
    config_.tied_embeddings = false;
    return absl::OkStatus();
  });
}

at::TensorOptions DecoderLoader::options() const {
  return at::TensorOptions(WorkingType(compute_, device_)).device(TorchDevice(device_));
}

absl::StatusOr<std::vector<LinearInfo>> DecoderLoader::Linears() const {
  return DecoderLinears(config_, *tensors_);
}

absl::StatusOr<NamedTensor> DecoderLoader::ReadBFloat16(const std::string& name) const {
  return CatchTorch([&] {
    return TensorReader(*tensors_, Compute::kF32, device_, rotation_.get()).ReadBFloat16(name);
  });
}

absl::StatusOr<DecoderLayer> DecoderLoader::LoadLayer(int64_t index) const {
  return CatchTorch([&]() -> absl::StatusOr<DecoderLayer> {
    NIBBLE_ASSIGN_OR_RETURN(const std::string prefix, FindPrefix(*tensors_, config_.family));
    const TensorReader reader(*tensors_, compute_, device_, rotation_.get());
    const auto [attention, mlp] = LayerNorms(config_.family, prefix, index);
    DecoderLayer layer;
    NIBBLE_ASSIGN_OR_RETURN(layer.attention_norm, reader.ReadNorm(config_, attention));
    NIBBLE_ASSIGN_OR_RETURN(layer.mlp_norm, reader.ReadNorm(config_, mlp));
    for (const LinearInfo& linear : LayerLinears(config_, prefix, index)) {
      NIBBLE_ASSIGN_OR_RETURN(LayerLinear read,
                              ReadLinear(config_, linear, *tensors_, reader, artifact_, purpose_));
      layer.linears.push_back(std::move(read));
    }
    return layer;
  });
}

absl::StatusOr<DecoderEnds> DecoderLoader::LoadEnds() const {
  return CatchTorch([&]() -> absl::StatusOr<DecoderEnds> {
    NIBBLE_ASSIGN_OR_RETURN(const std::string prefix, FindPrefix(*tensors_, config_.family));
    const TensorReader reader(*tensors_, compute_, device_, rotation_.get());
    const bool opt = config_.family == Family::kOpt;
    const int64_t width = opt ? config_.embed_dim : config_.hidden;
    DecoderEnds ends;
    NIBBLE_ASSIGN_OR_RETURN(ends.embedding, ReadEnd(reader, StrCat(prefix, "embed_tokens.weight"),
                                                    {config_.vocab, width}, purpose_));
    if (config_.tied_embeddings) {
      ends.head = ends.embedding;
    } else {
      NIBBLE_ASSIGN_OR_RETURN(ends.head,
                              ReadEnd(reader, "lm_head.weight", {config_.vocab, width}, purpose_));
    }
    if (opt) NIBBLE_RETURN_IF_ERROR(ReadOptEnds(config_, prefix, reader, purpose_, ends));
    if (config_.final_norm) {
      NIBBLE_ASSIGN_OR_RETURN(ends.norm,
                              reader.ReadNorm(config_, FinalNorm(config_.family, prefix)));
    }
    return ends;
  });
}

}  // namespace nibble
