#include "quant/model/decoder/decoder.h"

#include <utility>

#include "quant/base/status_macros.h"
#include "quant/base/torch_status.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Load(const std::filesystem::path& folder,
                                                       Compute compute, const Device& device) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<DecoderLoader> loader,
                          DecoderLoader::Open(folder, compute, device));
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
  int64_t bytes = 0;
  const auto add = [&](const at::Tensor& tensor) {
    if (tensor.defined()) bytes += static_cast<int64_t>(tensor.nbytes());
  };
  add(ends_.embedding);
  add(ends_.positions);
  add(ends_.project_in);
  add(ends_.project_out);
  if (!ends_.head.is_same(ends_.embedding)) add(ends_.head);
  for (const DecoderLayer& layer : layers_) {
    for (const LayerLinear& linear : layer.linears) {
      add(linear.weights.weight);
      add(linear.weights.bias);
      add(linear.weights.lorc_a);
      add(linear.weights.lorc_b);
    }
  }
  return bytes;
}

std::vector<KvBlocks> Decoder::MakeCache(int64_t blocks, int64_t block_size) const {
  std::vector<KvBlocks> cache;
  for (int64_t i = 0; i < config_.layers; ++i) {
    const auto empty = [&] {
      return at::zeros({blocks, block_size, config_.kv_heads, config_.head_dim},
                       ends_.embedding.options());
    };
    cache.push_back({empty(), empty()});
  }
  return cache;
}

at::Tensor Decoder::Forward(const Batch& batch, std::vector<KvBlocks>* cache) const {
  const Rotary rotary = MakeRotary(config_, batch, ends_.embedding.device());
  at::Tensor hidden = Embed(config_, ends_, batch);
  for (size_t i = 0; i < layers_.size(); ++i) {
    hidden = RunLayer(config_, layers_[i], hidden, batch, rotary,
                      cache == nullptr ? nullptr : &(*cache)[i]);
  }
  return hidden;
}

at::Tensor Decoder::Logits(const at::Tensor& hidden, absl::Span<const int64_t> rows) const {
  return nibble::Logits(config_, ends_, hidden, rows);
}

}  // namespace nibble
