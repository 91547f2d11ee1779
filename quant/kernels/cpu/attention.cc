// Paged attention over blocks of 16 positions. Both products are the tile kernel's: the keys of a
// block are a panel of 16 rows, 16 channels of its values another. A query's result depends on its
// own position and the keys up to it alone: scores one by one, exponentials summed by place, values
// added block after block. How a sequence is cut into chunks or batched changes no bit.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "quant/kernels/cpu/isa.h"
#include "quant/kernels/cpu/parallel.h"
#include "quant/kernels/cpu/tensor_kernels.h"
#include "quant/kernels/cpu/tile.h"
#include "quant/kernels/kernels.h"

namespace nibble {
namespace {

constexpr int64_t kBlock = kKvBlockSize;
static_assert(kBlock == kPanelRows);

int64_t Panels(int64_t channels) { return (channels + kPanelRows - 1) / kPanelRows; }

// Some neighbouring tokens of one segment and query heads that share a head of keys.
struct Tile {
  const Segment* segment = nullptr;
  int64_t first_token = 0;  // of the segment
  int64_t tokens = 0;
  int64_t first_head = 0;
  int64_t heads = 0;
  int64_t kv_head = 0;

  int64_t rows() const { return tokens * heads; }
  // Keys that a token of the tile sees.
  int64_t Keys(int64_t token) const { return segment->position + first_token + token + 1; }
};

class PagedAttention {
 public:
  PagedAttention(const at::Tensor& q, const KvBlocks& cache, at::Tensor& out)
      : q_(q.data_ptr<float>()),
        out_(out.data_ptr<float>()),
        k_(cache.k.data_ptr<float>()),
        v_(cache.v.data_ptr<float>()),
        heads_(q.size(1)),
        kv_heads_(cache.k.size(1)),
        channels_(q.size(2)),
        kernels_(KernelsOf(ActiveIsa())) {}

  void Run(absl::Span<const Segment> segments) const {
    const std::vector<Tile> tiles = MakeTiles(segments);
    ParallelTasks(static_cast<int64_t>(tiles.size()), [&](int64_t i) { Attend(tiles[i]); });
  }

 private:
  // The longest first.
  std::vector<Tile> MakeTiles(absl::Span<const Segment> segments) const {
    const int64_t share = heads_ / kv_heads_;
    const int64_t heads = std::min<int64_t>(share, kernels_.tile_tokens);
    const int64_t tokens = kernels_.tile_tokens / heads;
    std::vector<Tile> tiles;
    for (const Segment& segment : segments) {
      for (int64_t token = 0; token < segment.length; token += tokens) {
        for (int64_t head = 0; head < heads_; head += std::min(heads, share - head % share)) {
          tiles.push_back({&segment, token, std::min(tokens, segment.length - token), head,
                           std::min(heads, share - head % share), head / share});
        }
      }
    }
    std::ranges::stable_sort(tiles, std::greater(), [](const Tile& tile) { return tile.Keys(0); });
    return tiles;
  }

  const float* Keys(const Tile& tile, int64_t block) const {
    const int64_t place = tile.segment->blocks[block] * kv_heads_ + tile.kv_head;
    return k_ + place * channels_ * kBlock;
  }
  const float* Values(const Tile& tile, int64_t block, int64_t panel) const {
    const int64_t place = tile.segment->blocks[block] * kv_heads_ + tile.kv_head;
    return v_ + (place * Panels(channels_) + panel) * kBlock * kPanelRows;
  }
  int64_t RowOffset(const Tile& tile, int64_t row) const {
    const int64_t token = tile.segment->first_row + tile.first_token + row / tile.heads;
    return (token * heads_ + tile.first_head + row % tile.heads) * channels_;
  }

  void Attend(const Tile& tile) const {
    const int64_t stride = (tile.Keys(tile.tokens - 1) + kBlock - 1) / kBlock * kBlock;
    thread_local std::vector<float> scores;  // [rows, stride]
    scores.resize(tile.rows() * stride);
    Score(tile, stride, scores.data());
    float sums[kMaxTileTokens];
    for (int64_t row = 0; row < tile.rows(); ++row) {
      sums[row] = kernels_.exponentials(scores.data() + row * stride, tile.Keys(row / tile.heads));
    }
    for (int64_t panel = 0; panel < Panels(channels_); panel += kMaxTilePanels) {
      const int64_t left = Panels(channels_) - panel;
      Mix(tile, stride, scores.data(), sums, panel,
          static_cast<int>(std::min<int64_t>(left, kMaxTilePanels)));
    }
  }

  // scores[row][key] = q k / sqrt(channels); those of keys that a row does not see mean nothing.
  void Score(const Tile& tile, int64_t stride, float* scores) const {
    const int64_t rows = tile.rows();
    const float scale = 1 / std::sqrt(static_cast<float>(channels_));
    thread_local std::vector<float> queries;  // [channels, rows]
    queries.resize(channels_ * rows);
    for (int64_t row = 0; row < rows; ++row) {
      const float* from = q_ + RowOffset(tile, row);
      for (int64_t c = 0; c < channels_; ++c) queries[c * rows + row] = from[c] * scale;
    }
    TileInputs inputs;
    inputs.x = queries.data();
    inputs.columns = inputs.group = channels_;
    inputs.tokens = static_cast<int>(rows);
    const int64_t blocks = stride / kBlock;
    for (int64_t block = 0; block < blocks; block += kMaxTilePanels) {
      const int64_t count = std::min<int64_t>(blocks - block, kMaxTilePanels);
      inputs.panel_count = static_cast<int>(count);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t next = block + kMaxTilePanels + i;
        inputs.panels[i] = Keys(tile, block + i);
        inputs.next[i] =
            next < blocks ? Keys(tile, next) : Values(tile, std::min(i, blocks - 1), 0);
        inputs.scales[i] = nullptr;
      }
      float totals[kMaxTileTokens * kMaxTilePanels * kPanelRows] = {};
      kernels_.multiply(inputs, totals);
      for (int64_t row = 0; row < rows; ++row) {
        std::memcpy(scores + row * stride + block * kBlock, totals + row * count * kBlock,
                    count * kBlock * sizeof(float));
      }
    }
  }

  // The channels of panels first_panel .. first_panel + panels - 1 of the tile's outputs.
  void Mix(const Tile& tile, int64_t stride, const float* weights, const float* sums,
           int64_t first_panel, int panels) const {
    float totals[kMaxTileTokens * kMaxTilePanels * kPanelRows] = {};
    for (int64_t block = 0; block < stride / kBlock; ++block) {
      const int64_t begin = block * kBlock;
      const auto add = [&](int64_t first_row, int64_t rows, int64_t keys) {
        AddBlock(tile, block, weights + first_row * stride + begin, stride, rows, keys, first_panel,
                 panels, totals + first_row * panels * kPanelRows);
      };
      // A block that some tokens see only in part is added token by token.
      if (begin + kBlock <= tile.Keys(0)) {
        add(0, tile.rows(), kBlock);
        continue;
      }
      for (int64_t token = 0; token < tile.tokens; ++token) {
        const int64_t keys = std::min(tile.Keys(token) - begin, kBlock);
        if (keys > 0) add(token * tile.heads, tile.heads, keys);
      }
    }
    for (int64_t row = 0; row < tile.rows(); ++row) {
      const int64_t first = first_panel * kPanelRows;
      const int64_t width = std::min<int64_t>(panels * kPanelRows, channels_ - first);
      float* to = out_ + RowOffset(tile, row) + first;
      const float* from = totals + row * panels * kPanelRows;
      for (int64_t c = 0; c < width; ++c) to[c] = from[c] / sums[row];
    }
  }

  void AddBlock(const Tile& tile, int64_t block, const float* weights, int64_t stride, int64_t rows,
                int64_t keys, int64_t first_panel, int panels, float* totals) const {
    float x[kBlock * kMaxTileTokens];  // [keys, rows]
    for (int64_t key = 0; key < keys; ++key) {
      for (int64_t row = 0; row < rows; ++row) x[key * rows + row] = weights[row * stride + key];
    }
    TileInputs inputs;
    inputs.x = x;
    inputs.columns = keys;
    inputs.group = kBlock;
    inputs.tokens = static_cast<int>(rows);
    inputs.panel_count = panels;
    // As far ahead as Score has already fetched.
    const int64_t next =
        std::min(block + kMaxTilePanels, (tile.Keys(tile.tokens - 1) - 1) / kBlock);
    for (int i = 0; i < panels; ++i) {
      inputs.panels[i] = Values(tile, block, first_panel + i);
      inputs.next[i] = Values(tile, next, first_panel + i);
      inputs.scales[i] = nullptr;
    }
    kernels_.multiply(inputs, totals);
  }

  const float* const q_;
  float* const out_;
  const float* const k_;
  const float* const v_;
  const int64_t heads_;
  const int64_t kv_heads_;
  const int64_t channels_;
  const TileKernels& kernels_;
};

// Writes one token's keys and values, [kv_heads, channels], to their place in a block.
void WriteToken(const float* k, const float* v, int64_t block, int64_t slot, KvBlocks& cache) {
  const int64_t kv_heads = cache.k.size(1);
  const int64_t channels = cache.k.size(2);
  const int64_t panels = Panels(channels);
  for (int64_t head = 0; head < kv_heads; ++head) {
    const int64_t place = block * kv_heads + head;
    float* to_k = cache.k.data_ptr<float>() + place * channels * kBlock + slot;
    float* to_v = cache.v.data_ptr<float>() + place * panels * kBlock * kPanelRows;
    for (int64_t c = 0; c < channels; ++c) {
      to_k[c * kBlock] = k[head * channels + c];
      to_v[(c / kPanelRows * kBlock + slot) * kPanelRows + c % kPanelRows] = v[head * channels + c];
    }
  }
}

// Every token's keys and values to their places.
void WriteTokens(const at::Tensor& k, const at::Tensor& v, absl::Span<const Segment> segments,
                 KvBlocks& cache) {
  struct Place {
    int64_t row;
    int64_t block;
    int64_t slot;
  };
  std::vector<Place> places;
  for (const Segment& segment : segments) {
    for (int64_t token = 0; token < segment.length; ++token) {
      const int64_t position = segment.position + token;
      places.push_back(
          {segment.first_row + token, segment.blocks[position / kBlock], position % kBlock});
    }
  }
  const int64_t width = k.size(1) * k.size(2);
  constexpr int64_t kTokenBlock = 4;  // tokens worth a thread
  ParallelBlocks(static_cast<int64_t>(places.size()), kTokenBlock, [&](int64_t i) {
    const Place& place = places[i];
    WriteToken(k.const_data_ptr<float>() + place.row * width,
               v.const_data_ptr<float>() + place.row * width, place.block, place.slot, cache);
  });
}

// Segments with blocks of their own, for windows that no cache holds.
std::vector<Segment> NumberBlocks(absl::Span<const Segment> segments, int64_t& blocks) {
  std::vector<Segment> numbered(segments.begin(), segments.end());
  blocks = 0;
  for (Segment& segment : numbered) {
    segment.blocks.clear();
    for (int64_t begin = 0; begin < segment.length; begin += kBlock) {
      segment.blocks.push_back(static_cast<int32_t>(blocks++));
    }
  }
  return numbered;
}

}  // namespace

KvBlocks MakeKvBlocks(int64_t blocks, int64_t kv_heads, int64_t head_dim) {
  return {at::empty({blocks, kv_heads, head_dim, kBlock}, at::kFloat),
          at::empty({blocks, kv_heads, Panels(head_dim), kBlock, kPanelRows}, at::kFloat)};
}

int64_t KvBlockBytes(int64_t kv_heads, int64_t head_dim) {
  return kv_heads * kBlock * (head_dim + Panels(head_dim) * kPanelRows) *
         static_cast<int64_t>(sizeof(float));
}

at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     absl::Span<const Segment> segments, KvBlocks* cache) {
  if (!q.is_cpu()) {
    TORCH_CHECK(cache == nullptr, "paged attention: found ", q.device(), ", expected cpu");
    return tensor::Attention(q, k, v, segments);
  }
  std::vector<Segment> numbered;
  KvBlocks own;
  if (cache == nullptr) {
    int64_t blocks = 0;
    numbered = NumberBlocks(segments, blocks);
    segments = numbered;
    own = MakeKvBlocks(blocks, k.size(1), k.size(2));
    cache = &own;
  }
  const at::Tensor keys = k.contiguous();
  const at::Tensor values = v.contiguous();
  WriteTokens(keys, values, segments, *cache);
  at::Tensor out = at::empty(q.sizes(), at::kFloat);
  PagedAttention(q.contiguous(), *cache, out).Run(segments);
  return out;
}

}  // namespace nibble
