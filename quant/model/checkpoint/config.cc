#include "quant/model/checkpoint/config.h"

#include <system_error>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"

namespace nibble {
namespace {

// Far above any model, far below what overflows a product of three.
constexpr int64_t kMaxWidth = int64_t{1} << 18;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxVocab = int64_t{1} << 22;
constexpr int64_t kMaxContext = int64_t{1} << 24;

// A field whose only built value is `expected`.
absl::Status RequireBuilt(const JsonObject& json, std::string_view field, const Json& expected) {
  const Json* value = json.Get(field);
  if (value == nullptr || *value == expected) return absl::OkStatus();
  return absl::UnimplementedError(StrCat(json.where(), ": ", field, ": found ",
                                         value->is_structured() ? "a structure" : value->dump(),
                                         ", built is only ", expected.dump()));
}

absl::Status Contradiction(const JsonObject& json, std::string_view field, int64_t found,
                           std::string_view expected) {
  return absl::InvalidArgumentError(
      StrCat(json.where(), ": ", field, ": found ", found, ", expected ", expected));
}

// "eos_token_id": a number or a list of them; null is none, an absent one leaves `ids` alone.
absl::Status ParseEos(const JsonObject& json, int64_t vocab, std::vector<int64_t>& ids) {
  if (!json.fields().contains("eos_token_id")) return absl::OkStatus();
  ids.clear();
  const Json* value = json.Get("eos_token_id");
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_array()) {
    NIBBLE_ASSIGN_OR_RETURN(ids.emplace_back(),
                            json.Int("eos_token_id", {.min = 0, .max = vocab - 1}));
    return absl::OkStatus();
  }
  for (const Json& item : *value) {
    NIBBLE_ASSIGN_OR_RETURN(
        ids.emplace_back(),
        JsonInt(item, StrCat(json.where(), ": eos_token_id"), {.min = 0, .max = vocab - 1}));
  }
  return absl::OkStatus();
}

// What both families call by the same name.
absl::Status ParseCommon(const JsonObject& json, ModelConfig& config) {
  NIBBLE_ASSIGN_OR_RETURN(config.hidden, json.Int("hidden_size", {.min = 1, .max = kMaxWidth}));
  NIBBLE_ASSIGN_OR_RETURN(config.layers,
                          json.Int("num_hidden_layers", {.min = 1, .max = kMaxLayers}));
  NIBBLE_ASSIGN_OR_RETURN(config.heads,
                          json.Int("num_attention_heads", {.min = 1, .max = kMaxHeads}));
  NIBBLE_ASSIGN_OR_RETURN(config.vocab, json.Int("vocab_size", {.min = 1, .max = kMaxVocab}));
  NIBBLE_ASSIGN_OR_RETURN(
      config.context, json.Int("max_position_embeddings", {.min = 1, .max = kMaxContext}, 2048));
  if (json.Has("bos_token_id")) {
    NIBBLE_ASSIGN_OR_RETURN(config.bos_token_id,
                            json.Int("bos_token_id", {.min = 0, .max = config.vocab - 1}));
  }
  constexpr int64_t kDefaultEos = 2;  // of both families
  if (kDefaultEos < config.vocab) config.eos_token_ids = {kDefaultEos};
  return ParseEos(json, config.vocab, config.eos_token_ids);
}

// head_dim, or hidden_size / num_attention_heads.
absl::Status ParseHeadDim(const JsonObject& json, ModelConfig& config) {
  if (!json.Has("head_dim") && config.hidden % config.heads != 0) {
    return Contradiction(json, "hidden_size", config.hidden,
                         StrCat("a multiple of num_attention_heads ", config.heads));
  }
  NIBBLE_ASSIGN_OR_RETURN(config.head_dim, json.Int("head_dim", {.min = 1, .max = kMaxHeadDim},
                                                    config.hidden / config.heads));
  if (config.head_dim > kMaxHeadDim) {
    return Contradiction(json, "hidden_size", config.hidden,
                         StrCat("at most ", kMaxHeadDim, " for each of ", config.heads, " heads"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Llama3RopeScaling> ParseLlama3(const JsonObject& rope) {
  Llama3RopeScaling scaling;
  NIBBLE_ASSIGN_OR_RETURN(scaling.factor, rope.Number("factor", {.min = 1, .max = 1e6}));
  NIBBLE_ASSIGN_OR_RETURN(scaling.low_freq_factor,
                          rope.Number("low_freq_factor", {.min = 1e-6, .max = 1e6}));
  NIBBLE_ASSIGN_OR_RETURN(scaling.high_freq_factor,
                          rope.Number("high_freq_factor", {.min = 1e-6, .max = 1e6}));
  NIBBLE_ASSIGN_OR_RETURN(scaling.original_context, rope.Int("original_max_position_embeddings",
                                                             {.min = 1, .max = kMaxContext}));
  if (scaling.high_freq_factor <= scaling.low_freq_factor) {
    return rope.Unexpected("high_freq_factor",
                           StrCat("more than low_freq_factor ", scaling.low_freq_factor));
  }
  return scaling;
}

// transformers 5 writes "rope_parameters", with rope_theta inside; before it was "rope_scaling",
// with rope_theta outside and "type" as the older name of "rope_type".
absl::Status ParseRope(const JsonObject& json, ModelConfig& config) {
  constexpr JsonObject::NumberRange kThetas = {.min = 1, .max = 1e12};
  NIBBLE_ASSIGN_OR_RETURN(config.rope_theta, json.Number("rope_theta", kThetas, 10000));
  NIBBLE_RETURN_IF_ERROR(RequireBuilt(json, "partial_rotary_factor", 1.0));
  if (json.Has("rope_parameters") && json.Has("rope_scaling")) {
    return json.Unexpected("rope_scaling", "nothing beside rope_parameters");
  }
  const std::string_view field = json.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!json.Has(field)) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject rope, json.Object(field));
  NIBBLE_ASSIGN_OR_RETURN(config.rope_theta, rope.Number("rope_theta", kThetas, config.rope_theta));
  NIBBLE_RETURN_IF_ERROR(RequireBuilt(rope, "partial_rotary_factor", 1.0));
  NIBBLE_ASSIGN_OR_RETURN(const std::string old_name, rope.String("type", "default"));
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, rope.String("rope_type", old_name));
  if (type == "default") return absl::OkStatus();
  if (type != "llama3") {
    return absl::UnimplementedError(StrCat(rope.where(), ": the rope scaling ", Quoted(type),
                                           " is not built; built are \"default\" and \"llama3\""));
  }
  NIBBLE_ASSIGN_OR_RETURN(config.rope_scaling, ParseLlama3(rope));
  return absl::OkStatus();
}

absl::Status ParseLlama(const JsonObject& json, ModelConfig& config) {
  config.family = Family::kLlama;
  NIBBLE_RETURN_IF_ERROR(RequireBuilt(json, "hidden_act", "silu"));
  NIBBLE_RETURN_IF_ERROR(ParseCommon(json, config));
  NIBBLE_RETURN_IF_ERROR(ParseHeadDim(json, config));
  if (config.head_dim % 2 != 0) {
    return Contradiction(json, "head_dim", config.head_dim, "an even number, for rotary positions");
  }
  NIBBLE_ASSIGN_OR_RETURN(config.kv_heads, json.Int("num_key_value_heads",
                                                    {.min = 1, .max = config.heads}, config.heads));
  if (config.heads % config.kv_heads != 0) {
    return Contradiction(json, "num_key_value_heads", config.kv_heads,
                         StrCat("a divisor of num_attention_heads ", config.heads));
  }
  NIBBLE_ASSIGN_OR_RETURN(config.intermediate,
                          json.Int("intermediate_size", {.min = 1, .max = kMaxWidth}));
  NIBBLE_ASSIGN_OR_RETURN(config.norm_eps,
                          json.Number("rms_norm_eps", {.min = 1e-12, .max = 0.1}, 1e-6));
  NIBBLE_ASSIGN_OR_RETURN(config.tied_embeddings, json.Bool("tie_word_embeddings", false));
  NIBBLE_ASSIGN_OR_RETURN(config.attention_bias, json.Bool("attention_bias", false));
  NIBBLE_ASSIGN_OR_RETURN(config.mlp_bias, json.Bool("mlp_bias", false));
  config.embed_dim = config.hidden;
  return ParseRope(json, config);
}

absl::Status ParseOpt(const JsonObject& json, ModelConfig& config) {
  config.family = Family::kOpt;
  NIBBLE_RETURN_IF_ERROR(RequireBuilt(json, "activation_function", "relu"));
  NIBBLE_RETURN_IF_ERROR(RequireBuilt(json, "layer_norm_elementwise_affine", true));
  NIBBLE_RETURN_IF_ERROR(ParseCommon(json, config));
  if (json.Has("head_dim")) return json.Unexpected("head_dim", "no such field for OPT");
  NIBBLE_RETURN_IF_ERROR(ParseHeadDim(json, config));
  config.kv_heads = config.heads;
  NIBBLE_ASSIGN_OR_RETURN(config.intermediate, json.Int("ffn_dim", {.min = 1, .max = kMaxWidth}));
  NIBBLE_ASSIGN_OR_RETURN(config.embed_dim, json.Int("word_embed_proj_dim",
                                                     {.min = 1, .max = kMaxWidth}, config.hidden));
  NIBBLE_ASSIGN_OR_RETURN(config.pre_norm, json.Bool("do_layer_norm_before", true));
  NIBBLE_ASSIGN_OR_RETURN(const bool removed, json.Bool("_remove_final_layer_norm", false));
  config.final_norm = config.pre_norm && !removed;
  NIBBLE_ASSIGN_OR_RETURN(const bool bias, json.Bool("enable_bias", true));
  config.attention_bias = config.mlp_bias = bias;
  NIBBLE_ASSIGN_OR_RETURN(config.tied_embeddings, json.Bool("tie_word_embeddings", true));
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ParseConfig(const Json& document, std::string where) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::From(document, std::move(where)));
  NIBBLE_ASSIGN_OR_RETURN(const std::string model_type, json.String("model_type"));
  ModelConfig config;
  if (model_type == "llama") {
    NIBBLE_RETURN_IF_ERROR(ParseLlama(json, config));
  } else if (model_type == "opt") {
    NIBBLE_RETURN_IF_ERROR(ParseOpt(json, config));
  } else {
    return absl::UnimplementedError(StrCat(json.where(), ": the model_type ", Quoted(model_type),
                                           " is not built; built are \"llama\" and \"opt\""));
  }
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json) {
  NIBBLE_ASSIGN_OR_RETURN(const Json document, ParseJson(json, "config.json"));
  return ParseConfig(document, "config.json");
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  NIBBLE_ASSIGN_OR_RETURN(const Json document, ReadJsonFile(path));
  NIBBLE_ASSIGN_OR_RETURN(ModelConfig config, ParseConfig(document, path.string()));
  const std::filesystem::path generation = folder / "generation_config.json";
  if (std::error_code error; std::filesystem::exists(generation, error)) {
    NIBBLE_ASSIGN_OR_RETURN(const Json overrides, ReadJsonFile(generation));
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject json,
                            JsonObject::From(overrides, generation.string()));
    if (json.Has("eos_token_id")) {
      NIBBLE_RETURN_IF_ERROR(ParseEos(json, config.vocab, config.eos_token_ids));
    }
  }
  return config;
}

}  // namespace nibble
