// The decoder forward of the LLaMA and OPT families, written once. The pipeline runs it a layer at
// a time; the runner runs it whole over a paged KV cache. Every tensor of a model, and every hidden
// state, lies on the loader's device in its working type: bf16 for Compute::kBf16 on CUDA, else
// f32. Norms are f32 everywhere.
#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/base/compute.h"
#include "quant/base/device.h"
#include "quant/kernels/kernels.h"
#include "quant/model/checkpoint/artifact.h"
#include "quant/model/checkpoint/config.h"
#include "quant/model/checkpoint/safetensors.h"
#include "quant/model/decoder/input_group.h"
#include "quant/model/decoder/linears.h"
#include "quant/model/decoder/rotation.h"

namespace nibble {

// One linear of a layer.
struct LayerLinear {
  std::string name;  // Hugging Face name without ".weight": "model.layers.0.self_attn.q_proj"
  InputGroup input;
  LinearWeights weights;
  std::optional<ActivationSpec> activation;  // how its input is rounded; absent: not at all
  std::optional<QuantizedMatrix> matrix;     // Purpose::kPrepare: instead of weights.weight
};

struct DecoderLayer {
  NormWeights attention_norm;
  NormWeights mlp_norm;
  // LLaMA: q k v o gate up down. OPT: q k v out fc1 fc2.
  std::vector<LayerLinear> linears;
};

// Everything outside the layers.
struct DecoderEnds {
  LinearWeights embedding;                   // [vocab, embed_dim]
  at::Tensor positions;                      // [context + 2, hidden], OPT only
  std::optional<LinearWeights> project_in;   // [hidden, embed_dim], opt-350m only
  std::optional<LinearWeights> project_out;  // [embed_dim, hidden]
  std::optional<NormWeights> norm;           // final norm
  LinearWeights head;                        // [vocab, embed_dim]; the embedding when tied
};

// What a model is loaded for: to be quantized (linears hold true values), to be run (on a CPU they
// are arranged for its kernels, and nothing is dequantized), or to be prepared for a GPU's fused
// kernels (quantized linears are matrices in host memory).
enum class Purpose { kQuantize, kRun, kPrepare };

// Rounded to bf16; the tensor is of any device.
NamedTensor BFloat16Tensor(std::string name, const at::Tensor& tensor);

// Opens a checkpoint or artifact folder and builds its parts on demand, on one device. An artifact
// is recognised by its nibble.json. FAILED_PRECONDITION for a device that is not there.
class DecoderLoader {
 public:
  static absl::StatusOr<std::unique_ptr<DecoderLoader>> Open(const std::filesystem::path& folder,
                                                             Compute compute,
                                                             const Device& device = {},
                                                             Purpose purpose = Purpose::kQuantize);
  // INVALID_ARGUMENT with the reason for a model that Rotate can't turn exactly; reads norms alone.
  absl::Status CheckRotatable() const;
  // From now on everything is of the turned model (rotation.h), its head untied; `tensors` are not.
  // For what CheckRotatable has passed; not for an artifact.
  absl::Status Rotate(uint64_t seed);

  const ModelConfig& config() const { return config_; }
  const Device& device() const { return device_; }
  // Of its weights and hidden states: the working type, on the device.
  at::TensorOptions options() const;
  const TensorSource& tensors() const { return *tensors_; }
  // Of every layer, in order.
  absl::StatusOr<std::vector<LinearInfo>> Linears() const;
  // One of the model's tensors by its name, as an artifact stores it: rounded to bf16. Beside it
  // the host holds little, unless the tensor turns.
  absl::StatusOr<NamedTensor> ReadBFloat16(const std::string& name) const;
  absl::StatusOr<DecoderLayer> LoadLayer(int64_t index) const;
  absl::StatusOr<DecoderEnds> LoadEnds() const;

 private:
  DecoderLoader() = default;
  ModelConfig config_;
  Compute compute_ = Compute::kF32;
  Device device_;
  Purpose purpose_ = Purpose::kQuantize;
  std::unique_ptr<TensorSource> tensors_;
  std::optional<ArtifactSpec> artifact_;
  std::unique_ptr<const Rotation> rotation_;
};

// Called with a group's input before activation rounding: [tokens, K].
using InputObserver = std::function<void(InputGroup, const at::Tensor&)>;

// The tokens of one step and where they stand.
struct Batch {
  std::vector<int32_t> tokens;
  std::vector<Segment> segments;  // cover the tokens in order
};

// Angle per position of each pair of a head's channels, any scaling applied: f32 [head_dim / 2].
at::Tensor RotaryFrequencies(const ModelConfig& config);

// Per-token rotary angles, computed once per batch. Undefined for OPT.
struct Rotary {
  at::Tensor cos;  // f32 [tokens, head_dim / 2]
  at::Tensor sin;
};
Rotary MakeRotary(const ModelConfig& config, const Batch& batch, at::Device device = at::kCPU);

// hidden: [tokens, hidden].
at::Tensor Embed(const ModelConfig& config, const DecoderEnds& ends, const Batch& batch);
at::Tensor RunLayer(const ModelConfig& config, const DecoderLayer& layer, const at::Tensor& hidden,
                    const Batch& batch, const Rotary& rotary, KvBlocks* cache,
                    const InputObserver& observe = nullptr);
// A hint: the linears of that input come next (ExpectLinears).
void ExpectGroup(const DecoderLayer& layer, InputGroup group);
// Logits f32 [rows, vocab] of the chosen rows of hidden.
at::Tensor Logits(const ModelConfig& config, const DecoderEnds& ends, const at::Tensor& hidden,
                  absl::Span<const int64_t> rows);

// A whole model in memory, to be run. A token's hidden state and logits depend, bit for bit, on the
// tokens up to it alone: not on how they are batched or cut into chunks, nor on what the cache
// already held.
class Decoder {
 public:
  static absl::StatusOr<std::unique_ptr<Decoder>> Load(const std::filesystem::path& folder,
                                                       Compute compute, const Device& device = {});
  const ModelConfig& config() const { return config_; }
  int64_t weight_bytes() const;  // in memory
  // Blocks of kKvBlockSize positions, for every layer.
  std::vector<KvBlocks> MakeCache(int64_t blocks) const;
  // Hidden states after the last layer; `cache` has one entry per layer, or is null for windows
  // that start at position 0.
  at::Tensor Forward(const Batch& batch, std::vector<KvBlocks>* cache) const;
  at::Tensor Logits(const at::Tensor& hidden, absl::Span<const int64_t> rows) const;

 private:
  Decoder() = default;
  ModelConfig config_;
  DecoderEnds ends_;
  std::vector<DecoderLayer> layers_;
};

}  // namespace nibble
