#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>

#include "quant/kernels/cpu/parallel.h"
#include "quant/kernels/cpu/tile.h"

namespace nibble {

// A batch's tokens in tiles of nearly equal size, as the kernels read them: of one tile after the
// other [cols, tokens of the tile], `cols` a multiple of kColumnStep; or pairs of bf16 columns.
class TiledInput {
 public:
  // Zeros.
  TiledInput(int64_t tokens, int64_t cols, int tile_tokens, bool pairs)
      : tokens_(tokens), cols_(cols), tiles_((tokens + tile_tokens - 1) / tile_tokens) {
    if (pairs) {
      pairs_ = std::make_unique<uint32_t[]>(tokens * cols / 2);
    } else {
      values_ = std::make_unique<float[]>(tokens * cols);
    }
  }

  // x: [tokens, width], width <= cols; as pairs every value is a bf16 number.
  void Fill(const float* x, int64_t width) {
    constexpr int64_t kTileBlock = 4;  // tiles worth a thread
    ParallelBlocks(tiles_, kTileBlock, [&](int64_t tile) {
      const int64_t count = token_count(tile);
      for (int64_t t = 0; t < count; ++t) {
        const float* row = x + (first_token(tile) + t) * width;
        if (pairs_ != nullptr) {
          FillPairs(row, width, pairs(tile) + t, count);
        } else {
          float* to = values(tile) + t;
          for (int64_t col = 0; col < width; ++col) to[col * count] = row[col];
        }
      }
    });
  }
  // Not of pairs.
  void Put(int64_t tile, int64_t col, int64_t token, float value) {
    values(tile)[col * token_count(tile) + token] = value;
  }

  int64_t tiles() const { return tiles_; }
  int64_t first_token(int64_t tile) const { return tile * tokens_ / tiles_; }
  int token_count(int64_t tile) const {
    return static_cast<int>(first_token(tile + 1) - first_token(tile));
  }
  // Everything of `inputs` that is the tile's.
  void Describe(int64_t tile, TileInputs& inputs) const {
    inputs.tokens = token_count(tile);
    if (pairs_ != nullptr) {
      inputs.pairs = pairs(tile);
    } else {
      inputs.x = values(tile);
    }
  }

 private:
  static uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }
  static void FillPairs(const float* row, int64_t width, uint32_t* to, int64_t stride) {
    int64_t pair = 0;
    for (; 2 * pair + 1 < width; ++pair) {
      to[pair * stride] =
          Bits(row[2 * pair]) >> 16 | (Bits(row[2 * pair + 1]) & uint32_t{0xffff0000});
    }
    if (2 * pair < width) to[pair * stride] = Bits(row[2 * pair]) >> 16;
  }
  float* values(int64_t tile) const { return values_.get() + first_token(tile) * cols_; }
  uint32_t* pairs(int64_t tile) const { return pairs_.get() + first_token(tile) * cols_ / 2; }

  int64_t tokens_;
  int64_t cols_;
  int64_t tiles_;
  std::unique_ptr<float[]> values_;
  std::unique_ptr<uint32_t[]> pairs_;  // instead
};

}  // namespace nibble
