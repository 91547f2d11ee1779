// The linears of a model's decoder layers, known from its config and tensor names alone.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/model/checkpoint/config.h"
#include "quant/model/checkpoint/safetensors.h"
#include "quant/model/decoder/input_group.h"

namespace nibble {

struct LinearInfo {
  std::string name;  // Hugging Face name without ".weight": "model.layers.0.self_attn.q_proj"
  InputGroup input;
  int64_t layer = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};

// What stands before "embed_tokens" and "layers.0." in this checkpoint: "model.",
// "model.decoder.", ... NOT_FOUND when there is no embedding.
absl::StatusOr<std::string> FindPrefix(const TensorSource& tensors, Family family);

// Whether linears with this input have a bias.
bool HasBias(const ModelConfig& config, InputGroup input);

// The norms before (OPT may: after) a layer's attention and its MLP, and the one after all layers:
// names without ".weight".
struct LayerNormNames {
  std::string attention;
  std::string mlp;
};
LayerNormNames LayerNorms(Family family, const std::string& prefix, int64_t layer);
std::string FinalNorm(Family family, const std::string& prefix);

// Of one layer. LLaMA: q k v o gate up down. OPT: q k v out fc1 fc2.
std::vector<LinearInfo> LayerLinears(const ModelConfig& config, const std::string& prefix,
                                     int64_t layer);
// Of every layer, in order.
absl::StatusOr<std::vector<LinearInfo>> DecoderLinears(const ModelConfig& config,
                                                       const TensorSource& tensors);

}  // namespace nibble
