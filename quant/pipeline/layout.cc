#include "quant/pipeline/layout.h"

#include <utility>

#include "quant/base/strings.h"

namespace nibble {
namespace {

// A shard of the rest is full when it has so many bytes.
constexpr int64_t kShardBytes = int64_t{1} << 30;

constexpr char kHead[] = "lm_head.weight";

// Buffers that old checkpoints carry and no forward reads; a tied head is the embedding.
bool IsDropped(const ModelConfig& config, std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || (config.tied_embeddings && name == kHead);
}

// What is not quantized. An untied head that the checkpoint does not hold is as large as the
// embedding.
std::vector<RestTensor> RestTensors(const ModelConfig& config, const TensorSource& tensors,
                                    const std::set<std::string>& quantized) {
  std::vector<RestTensor> rest;
  for (const std::string& name : tensors.Names()) {
    if (quantized.contains(name) || IsDropped(config, name)) continue;
    rest.push_back({name, tensors.Find(name)->elements()});
  }
  if (!config.tied_embeddings && !tensors.Contains(kHead)) {
    rest.push_back({kHead, config.vocab * config.embed_dim});
  }
  return rest;
}

}  // namespace

ArtifactLayout PlanArtifact(const ModelConfig& config, const TensorSource& tensors,
                            const std::vector<LinearInfo>& linears,
                            const std::set<std::string>& excluded) {
  ArtifactLayout layout;
  std::set<std::string> quantized;
  for (const LinearInfo& linear : linears) {
    if (excluded.contains(linear.name)) continue;
    layout.quantized_layers.insert(linear.layer);
    quantized.insert(StrCat(linear.name, ".weight"));
  }
  int64_t bytes = kShardBytes;
  for (RestTensor& tensor : RestTensors(config, tensors, quantized)) {
    if (bytes >= kShardBytes) {
      layout.rest.emplace_back();
      bytes = 0;
    }
    bytes += 2 * tensor.elements;
    layout.rest.back().push_back(std::move(tensor));
  }
  return layout;
}

}  // namespace nibble
