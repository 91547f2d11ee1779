// The forward itself: embeddings, rotary angles, one layer, logits.
#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

#include "quant/model/decoder/decoder.h"

namespace nibble {
namespace {

// OPT's learned positions begin at row 2.
constexpr int64_t kOptPositionOffset = 2;

// The position of each token of the batch: i64 [tokens].
at::Tensor Positions(const Batch& batch) {
  std::vector<int64_t> positions;
  positions.reserve(batch.tokens.size());
  for (const Segment& segment : batch.segments) {
    for (int64_t i = 0; i < segment.length; ++i) positions.push_back(segment.position + i);
  }
  return at::tensor(positions, at::kLong);
}

// Llama-3 stretches low frequencies by `factor`, keeps high ones, and blends between.
double ScaleFrequency(const Llama3RopeScaling& scaling, double frequency) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double context = static_cast<double>(scaling.original_context);
  if (wavelength < context / scaling.high_freq_factor) return frequency;
  if (wavelength > context / scaling.low_freq_factor) return frequency / scaling.factor;
  const double smooth = (context / wavelength - scaling.low_freq_factor) /
                        (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

// The outputs of all linears of one group, in the layer's order. `norm` null: x is the input.
std::vector<at::Tensor> RunGroup(const DecoderLayer& layer, InputGroup group,
                                 const NormWeights* norm, const at::Tensor& x,
                                 const InputObserver& observe) {
  at::Tensor plain = norm == nullptr ? x : at::Tensor();
  const auto input = [&] {
    if (!plain.defined()) plain = Normalize(*norm, x);
    return plain;
  };
  if (observe) observe(group, input());
  std::vector<at::Tensor> outputs;
  std::vector<const LinearWeights*> weights[2];  // of linears whose input is not rounded, and is
  std::vector<size_t> places[2];
  std::optional<ActivationSpec> activation;
  for (const LayerLinear& linear : layer.linears) {
    if (linear.input != group) continue;
    const int rounded = linear.activation ? 1 : 0;
    if (linear.activation) activation = linear.activation;
    weights[rounded].push_back(&linear.weights);
    places[rounded].push_back(outputs.size());
    outputs.emplace_back();
  }
  for (const int rounded : {0, 1}) {
    if (weights[rounded].empty()) continue;
    LinearInput shared;
    if (rounded == 0) {
      shared.values = input();
    } else {
      shared = norm == nullptr ? RoundActivations(activation, x)
                               : NormalizeAndRound(*norm, activation, x);
    }
    std::vector<at::Tensor> products = Linears(weights[rounded], shared);
    for (size_t i = 0; i < products.size(); ++i) {
      outputs[places[rounded][i]] = std::move(products[i]);
    }
  }
  return outputs;
}

at::Tensor SelfAttention(const ModelConfig& config, const std::vector<at::Tensor>& qkv,
                         const Batch& batch, const Rotary& rotary, KvBlocks* cache) {
  const int64_t tokens = qkv[0].size(0);
  at::Tensor q = qkv[0].view({tokens, config.heads, config.head_dim});
  at::Tensor k = qkv[1].view({tokens, config.kv_heads, config.head_dim});
  const at::Tensor v = qkv[2].view({tokens, config.kv_heads, config.head_dim});
  if (rotary.cos.defined()) {
    ApplyRotary(q, rotary.cos, rotary.sin);
    ApplyRotary(k, rotary.cos, rotary.sin);
  }
  return Attention(q, k, v, batch.segments, cache).flatten(1);
}

at::Tensor Activate(const ModelConfig& config, const std::vector<at::Tensor>& up) {
  return config.family == Family::kLlama ? SiluMultiply(up[0], up[1]) : at::relu(up[0]);
}

}  // namespace

at::Tensor RotaryFrequencies(const ModelConfig& config) {
  std::vector<float> frequencies;
  for (int64_t i = 0; i < config.head_dim / 2; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
    double frequency = std::pow(config.rope_theta, -exponent);
    if (config.rope_scaling) frequency = ScaleFrequency(*config.rope_scaling, frequency);
    frequencies.push_back(static_cast<float>(frequency));
  }
  return at::tensor(frequencies, at::kFloat);
}

// The angles are computed on the CPU, so that every device turns by the same ones, and one by one:
// LibTorch's cosine of an angle differs in its last bit with its place in a tensor.
Rotary MakeRotary(const ModelConfig& config, const Batch& batch, at::Device device) {
  if (config.family == Family::kOpt) return {};
  const at::Tensor angles = at::outer(Positions(batch).to(at::kFloat), RotaryFrequencies(config));
  const Rotary rotary = {at::empty_like(angles), at::empty_like(angles)};
  for (int64_t i = 0; i < angles.numel(); ++i) {
    const float angle = angles.data_ptr<float>()[i];
    rotary.cos.data_ptr<float>()[i] = std::cos(angle);
    rotary.sin.data_ptr<float>()[i] = std::sin(angle);
  }
  return {rotary.cos.to(device), rotary.sin.to(device)};
}

at::Tensor Embed(const ModelConfig& config, const DecoderEnds& ends, const Batch& batch) {
  at::Tensor hidden = GatherRows(ends.embedding, at::tensor(batch.tokens, at::kInt).to(at::kLong));
  if (ends.project_in) hidden = Linear(*ends.project_in, hidden);
  if (config.family == Family::kOpt) {
    const at::Tensor rows = (Positions(batch) + kOptPositionOffset).to(hidden.device());
    hidden = hidden + ends.positions.index_select(0, rows);
  }
  return hidden;
}

void ExpectGroup(const DecoderLayer& layer, InputGroup group) {
  std::vector<const LinearWeights*> weights;
  for (const LayerLinear& linear : layer.linears) {
    if (linear.input == group) weights.push_back(&linear.weights);
  }
  ExpectLinears(weights);
}

at::Tensor RunLayer(const ModelConfig& config, const DecoderLayer& layer, const at::Tensor& hidden,
                    const Batch& batch, const Rotary& rotary, KvBlocks* cache,
                    const InputObserver& observe) {
  const auto norm_before = [&](const NormWeights& norm) {
    return config.pre_norm ? &norm : nullptr;
  };
  const auto norm_after = [&](const NormWeights& norm, const at::Tensor& x) {
    return config.pre_norm ? x : Normalize(norm, x);
  };

  const std::vector<at::Tensor> qkv =
      RunGroup(layer, InputGroup::kAttentionIn, norm_before(layer.attention_norm), hidden, observe);
  ExpectGroup(layer, InputGroup::kAttentionOut);
  const at::Tensor mixed = SelfAttention(config, qkv, batch, rotary, cache);
  at::Tensor attended = RunGroup(layer, InputGroup::kAttentionOut, nullptr, mixed, observe)[0];
  ExpectGroup(layer, InputGroup::kMlpIn);
  const at::Tensor middle = norm_after(layer.attention_norm, attended.add_(hidden));

  const std::vector<at::Tensor> up =
      RunGroup(layer, InputGroup::kMlpIn, norm_before(layer.mlp_norm), middle, observe);
  ExpectGroup(layer, InputGroup::kMlpOut);
  at::Tensor down = RunGroup(layer, InputGroup::kMlpOut, nullptr, Activate(config, up), observe)[0];
  return norm_after(layer.mlp_norm, down.add_(middle));
}

at::Tensor Logits(const ModelConfig&, const DecoderEnds& ends, const at::Tensor& hidden,
                  absl::Span<const int64_t> rows) {
  const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(rows.data(), rows.size()));
  at::Tensor x = hidden.index_select(0, index.to(hidden.device()));
  if (ends.norm) x = Normalize(*ends.norm, x);
  if (ends.project_out) x = Linear(*ends.project_out, x);
  return Linear(ends.head, x).to(at::kFloat);
}

}  // namespace nibble
