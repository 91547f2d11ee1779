// Which tensors of a checkpoint an artifact holds as they are, and in how many shards the whole
// comes: from names and shapes alone. Private to pipeline/.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "quant/model/checkpoint/config.h"
#include "quant/model/checkpoint/safetensors.h"
#include "quant/model/decoder/linears.h"

namespace nibble {

struct RestTensor {
  std::string name;
  int64_t elements = 0;
};

struct ArtifactLayout {
  // Layers with a linear that is quantized; each has a shard of its own, before the rest.
  std::set<int64_t> quantized_layers;
  // The tensors in each further shard, stored in bf16.
  std::vector<std::vector<RestTensor>> rest;

  int64_t shards() const { return static_cast<int64_t>(quantized_layers.size() + rest.size()); }
};

// `config` is that of the artifact: its head may be untied where the checkpoint's is tied.
ArtifactLayout PlanArtifact(const ModelConfig& config, const TensorSource& tensors,
                            const std::vector<LinearInfo>& linears,
                            const std::set<std::string>& excluded);

}  // namespace nibble
