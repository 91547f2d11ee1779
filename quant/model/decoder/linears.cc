#include "quant/model/decoder/linears.h"

#include <utility>

#include "absl/types/span.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

// A family's names in Hugging Face checkpoints.
struct LinearName {
  const char* suffix;
  InputGroup input;
};
constexpr LinearName kLlamaLinears[] = {
    {"self_attn.q_proj", InputGroup::kAttentionIn}, {"self_attn.k_proj", InputGroup::kAttentionIn},
    {"self_attn.v_proj", InputGroup::kAttentionIn}, {"self_attn.o_proj", InputGroup::kAttentionOut},
    {"mlp.gate_proj", InputGroup::kMlpIn},          {"mlp.up_proj", InputGroup::kMlpIn},
    {"mlp.down_proj", InputGroup::kMlpOut}};
constexpr LinearName kOptLinears[] = {{"self_attn.q_proj", InputGroup::kAttentionIn},
                                      {"self_attn.k_proj", InputGroup::kAttentionIn},
                                      {"self_attn.v_proj", InputGroup::kAttentionIn},
                                      {"self_attn.out_proj", InputGroup::kAttentionOut},
                                      {"fc1", InputGroup::kMlpIn},
                                      {"fc2", InputGroup::kMlpOut}};

absl::Span<const LinearName> LinearNames(Family family) {
  if (family == Family::kOpt) return kOptLinears;
  return kLlamaLinears;
}

// {rows, cols} of a linear, by its input and name.
std::pair<int64_t, int64_t> LinearShape(const ModelConfig& config, const LinearName& linear) {
  const std::string_view suffix = linear.suffix;
  const int64_t q_width = config.heads * config.head_dim;
  switch (linear.input) {
    case InputGroup::kAttentionIn:
      return {suffix == "self_attn.q_proj" ? q_width : config.kv_heads * config.head_dim,
              config.hidden};
    case InputGroup::kAttentionOut:
      return {config.hidden, q_width};
    case InputGroup::kMlpIn:
      return {config.intermediate, config.hidden};
    case InputGroup::kMlpOut:
      return {config.hidden, config.intermediate};
  }
  return {0, 0};
}

}  // namespace

absl::StatusOr<std::string> FindPrefix(const TensorSource& tensors, Family family) {
  const char* llama[] = {"model.", ""};
  const char* opt[] = {"model.decoder.", "decoder."};
  for (const char* prefix : family == Family::kOpt ? opt : llama) {
    if (tensors.Contains(StrCat(prefix, "embed_tokens.weight"))) return std::string(prefix);
  }
  return absl::NotFoundError(StrCat("tensor embed_tokens.weight: found none with prefix '",
                                    family == Family::kOpt ? opt[0] : llama[0], "' or '",
                                    family == Family::kOpt ? opt[1] : llama[1], "'"));
}

bool HasBias(const ModelConfig& config, InputGroup input) {
  const bool attention = input == InputGroup::kAttentionIn || input == InputGroup::kAttentionOut;
  return attention ? config.attention_bias : config.mlp_bias;
}

LayerNormNames LayerNorms(Family family, const std::string& prefix, int64_t layer) {
  const std::string base = StrCat(prefix, "layers.", layer, ".");
  if (family == Family::kOpt) return {base + "self_attn_layer_norm", base + "final_layer_norm"};
  return {base + "input_layernorm", base + "post_attention_layernorm"};
}

std::string FinalNorm(Family family, const std::string& prefix) {
  return StrCat(prefix, family == Family::kOpt ? "final_layer_norm" : "norm");
}

std::vector<LinearInfo> LayerLinears(const ModelConfig& config, const std::string& prefix,
                                     int64_t layer) {
  std::vector<LinearInfo> infos;
  for (const LinearName& linear : LinearNames(config.family)) {
    const auto [rows, cols] = LinearShape(config, linear);
    infos.push_back(
        {StrCat(prefix, "layers.", layer, ".", linear.suffix), linear.input, layer, rows, cols});
  }
  return infos;
}

absl::StatusOr<std::vector<LinearInfo>> DecoderLinears(const ModelConfig& config,
                                                       const TensorSource& tensors) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string prefix, FindPrefix(tensors, config.family));
  std::vector<LinearInfo> infos;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    for (LinearInfo& info : LayerLinears(config, prefix, layer)) infos.push_back(std::move(info));
  }
  return infos;
}

}  // namespace nibble
