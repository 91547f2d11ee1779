#include "quant/pipeline/layout.h"

#include "quant/base/strings.h"

namespace nibble {
namespace {

// A shard of the rest is full when it has so many bytes.
constexpr int64_t kShardBytes = int64_t{1} << 30;

// Buffers that old checkpoints carry and no forward reads; a tied head is the embedding.
bool IsDropped(const ModelConfig& config, std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") ||
         (config.tied_embeddings && name == "lm_head.weight");
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
  for (const std::string& name : tensors.Names()) {
    if (quantized.contains(name) || IsDropped(config, name)) continue;
    if (bytes >= kShardBytes) {
      layout.rest.emplace_back();
      bytes = 0;
    }
    layout.rest.back().push_back(name);
    bytes += 2 * tensors.Find(name)->elements();
  }
  return layout;
}

}  // namespace nibble
