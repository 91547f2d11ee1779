// A model's architecture, read from Hugging Face's config.json.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble {

enum class Family { kLlama, kOpt };

// "rope_scaling" of type llama3.
struct Llama3RopeScaling {
  double factor = 8;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int64_t original_context = 8192;
};

// Every field is checked against its neighbours when parsed; defaults are the family's.
struct ModelConfig {
  Family family = Family::kLlama;
  int64_t hidden = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate = 0;  // MLP width (OPT: ffn_dim)
  int64_t vocab = 0;
  int64_t context = 0;  // max_position_embeddings
  double norm_eps = 1e-5;
  bool tied_embeddings = false;
  bool attention_bias = false;  // q, k, v, o (OPT: enable_bias)
  bool mlp_bias = false;
  double rope_theta = 10000;
  std::optional<Llama3RopeScaling> rope_scaling;
  // OPT
  int64_t embed_dim = 0;   // word_embed_proj_dim; == hidden unless project_in/out exist
  bool pre_norm = true;    // do_layer_norm_before
  bool final_norm = true;  // absent in opt-350m
  std::vector<int64_t> eos_token_ids;
  std::optional<int64_t> bos_token_id;
};

// INVALID_ARGUMENT names the field, what was found and what was expected; an architecture or a
// rope scaling that is not built is UNIMPLEMENTED.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json);
// The folder's config.json; "eos_token_id" of generation_config.json counts before it, as in
// transformers.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::filesystem::path& folder);

}  // namespace nibble
