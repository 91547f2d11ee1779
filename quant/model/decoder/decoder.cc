#include "quant/model/decoder/decoder.h"

#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/torch_status.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Load(const std::filesystem::path& folder,
                                                       Compute compute, const Device& device) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<DecoderLoader> loader,
                          DecoderLoader::Open(folder, compute, device, Purpose::kRun));
  return CatchTorch([&]() -> absl::StatusOr<std::unique_ptr<Decoder>> {
    auto decoder = std::unique_ptr<Decoder>(new Decoder());
    decoder->config_ = loader->config();
    NIBBLE_ASSIGN_OR_RETURN(decoder->ends_, loader->LoadEnds());
    for (int64_t i = 0; i < decoder->config_.layers; ++i) {
      NIBBLE_ASSIGN_OR_RETURN(DecoderLayer layer, loader->LoadLayer(i));
      decoder->layers_.push_back(std::move(layer));
    }
    return decoder;
  });
}

int64_t Decoder::weight_bytes() const {
  int64_t bytes = WeightBytes(ends_.embedding);
  if (ends_.positions.defined()) bytes += static_cast<int64_t>(ends_.positions.nbytes());
  if (ends_.project_in) bytes += WeightBytes(*ends_.project_in) + WeightBytes(*ends_.project_out);
  if (!config_.tied_embeddings) bytes += WeightBytes(ends_.head);
  for (const DecoderLayer& layer : layers_) {
    for (const LayerLinear& linear : layer.linears) bytes += WeightBytes(linear.weights);
  }
  return bytes;
}

std::vector<KvBlocks> Decoder::MakeCache(int64_t blocks) const {
  std::vector<KvBlocks> cache;
  for (int64_t i = 0; i < config_.layers; ++i) {
    cache.push_back(MakeKvBlocks(blocks, config_.kv_heads, config_.head_dim));
  }
  return cache;
}

at::Tensor Decoder::Forward(const Batch& batch, std::vector<KvBlocks>* cache) const {
  ExpectGroup(layers_.front(), InputGroup::kAttentionIn);
  at::Tensor hidden = Embed(config_, ends_, batch);
  const Rotary rotary = MakeRotary(config_, batch, hidden.device());
  for (size_t i = 0; i < layers_.size(); ++i) {
    hidden = RunLayer(config_, layers_[i], hidden, batch, rotary,
                      cache == nullptr ? nullptr : &(*cache)[i]);
    if (i + 1 < layers_.size()) ExpectGroup(layers_[i + 1], InputGroup::kAttentionIn);
  }
  ExpectLinears({&ends_.head});
  return hidden;
}

at::Tensor Decoder::Logits(const at::Tensor& hidden, absl::Span<const int64_t> rows) const {
  return nibble::Logits(config_, ends_, hidden, rows);
}

}  // namespace nibble
