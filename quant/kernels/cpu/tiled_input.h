#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "quant/kernels/cpu/parallel.h"
#include "quant/kernels/cpu/tile.h"

namespace nibble {

// A batch's tokens in tiles of nearly equal size, as the kernels read them: [cols, tokens of the
// tile] of one tile after the other, `cols` a multiple of kColumnStep.
class TiledInput {
 public:
  // Zeros.
  TiledInput(int64_t tokens, int64_t cols, int tile_tokens)
      : tokens_(tokens),
        cols_(cols),
        tiles_((tokens + tile_tokens - 1) / tile_tokens),
        values_(std::make_unique<float[]>(tokens * cols)) {}

  // x: [tokens, width], width <= cols.
  void Fill(const float* x, int64_t width) {
    constexpr int64_t kTileBlock = 4;  // tiles worth a thread
    ParallelBlocks(tiles_, kTileBlock, [&](int64_t tile) {
      const int count = token_count(tile);
      for (int t = 0; t < count; ++t) {
        const float* row = x + (first_token(tile) + t) * width;
        float* to = data(tile) + t;
        for (int64_t col = 0; col < width; ++col) to[col * count] = row[col];
      }
    });
  }

  int64_t tiles() const { return tiles_; }
  int64_t first_token(int64_t tile) const { return tile * tokens_ / tiles_; }
  int token_count(int64_t tile) const {
    return static_cast<int>(first_token(tile + 1) - first_token(tile));
  }
  float* data(int64_t tile) { return values_.get() + first_token(tile) * cols_; }
  const float* data(int64_t tile) const { return values_.get() + first_token(tile) * cols_; }

 private:
  int64_t tokens_;
  int64_t cols_;
  int64_t tiles_;
  std::unique_ptr<float[]> values_;
};

}  // namespace nibble
