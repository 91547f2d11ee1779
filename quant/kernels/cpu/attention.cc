#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "quant/kernels/kernels.h"

namespace nibble {
namespace {

// Writes a segment's new keys or values to its blocks: [length, kv_heads, head_dim].
void WriteBlocks(const at::Tensor& fresh, const Segment& segment, at::Tensor& blocks) {
  const int64_t block_size = blocks.size(1);
  for (int64_t done = 0; done < segment.length;) {
    const int64_t position = segment.position + done;
    const int64_t slot = position % block_size;
    const int64_t count = std::min(block_size - slot, segment.length - done);
    blocks[segment.blocks[position / block_size]]
        .narrow(0, slot, count)
        .copy_(fresh.narrow(0, done, count));
    done += count;
  }
}

// The keys or values of positions 0 .. position + length - 1: [total, kv_heads, head_dim].
at::Tensor ReadBlocks(const Segment& segment, const at::Tensor& blocks) {
  const int64_t total = segment.position + segment.length;
  const int64_t used = (total + blocks.size(1) - 1) / blocks.size(1);
  const at::Tensor index =
      at::tensor(at::ArrayRef<int32_t>(segment.blocks.data(), used), at::kLong);
  return blocks.index_select(0, index.to(blocks.device())).flatten(0, 1).narrow(0, 0, total);
}

// Row i of the queries stands at position `position + i` and sees keys 0 .. position + i.
// Undefined when a plain causal mask or none says the same.
at::Tensor ChunkMask(int64_t queries, int64_t position, at::Device device) {
  if (position == 0 || queries == 1) return {};
  return at::ones({queries, position + queries}, at::TensorOptions(at::kBool).device(device))
      .tril(position);
}

// q: [queries, heads, head_dim]; k, v: [keys, kv_heads, head_dim].
at::Tensor AttendOne(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     int64_t position) {
  const int64_t queries = q.size(0);
  const int64_t repeat = q.size(1) / k.size(1);
  const auto heads_first = [](const at::Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
  const auto widen = [&](const at::Tensor& x) {
    return repeat == 1 ? x : x.repeat_interleave(repeat, 1);
  };
  const at::Tensor mask = ChunkMask(queries, position, q.device());
  const bool causal = !mask.defined() && queries > 1;
  const at::Tensor out = at::scaled_dot_product_attention(
      heads_first(q), heads_first(widen(k)), heads_first(widen(v)),
      mask.defined() ? std::optional<at::Tensor>(mask) : std::nullopt, /*dropout_p=*/0.0, causal);
  return out.squeeze(0).transpose(0, 1);  // [queries, heads, head_dim]
}

}  // namespace

at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     absl::Span<const Segment> segments, KvBlocks* cache) {
  at::Tensor out = at::empty_like(q);
  for (const Segment& segment : segments) {
    const auto rows = [&](const at::Tensor& x) {
      return x.narrow(0, segment.first_row, segment.length);
    };
    at::Tensor keys = rows(k);
    at::Tensor values = rows(v);
    if (cache != nullptr) {
      WriteBlocks(keys, segment, cache->k);
      WriteBlocks(values, segment, cache->v);
      if (segment.position > 0) {
        keys = ReadBlocks(segment, cache->k);
        values = ReadBlocks(segment, cache->v);
      }
    }
    rows(out).copy_(AttendOne(rows(q), keys, values, segment.position));
  }
  return out;
}

}  // namespace nibble
