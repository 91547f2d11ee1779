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
  // Zeros in columns `width` and beyond; what stands before them is to be written.
  TiledInput(int64_t tokens, int64_t width, int64_t cols, int tile_tokens, bool pairs)
      : tokens_(tokens),
        width_(width),
        cols_(cols),
        tiles_((tokens + tile_tokens - 1) / tile_tokens) {
    if (pairs) {
      pairs_ = std::make_unique_for_overwrite<uint32_t[]>(tokens * cols / 2);
    } else {
      values_ = std::make_unique_for_overwrite<float[]>(tokens * cols);
    }
    for (int64_t tile = 0; tile < tiles_ && width < cols; ++tile) {
      const int64_t count = token_count(tile);
      if (pairs) {
        std::fill(this->pairs(tile) + width / 2 * count, this->pairs(tile) + cols / 2 * count, 0);
      } else {
        std::fill(values(tile) + width * count, values(tile) + cols * count, 0);
      }
    }
  }

  // x: [tokens, width]; as pairs every value is a bf16 number.
  void Fill(const float* x) {
    constexpr int64_t kWorthThread = 4096;  // values of a tile
    if (tiles_ == 0) return;
    const int64_t block = kWorthThread / token_count(0) / 2 * 2;  // columns
    const int64_t blocks = (width_ + block - 1) / block;
    ParallelTasks(tiles_ * blocks, [&](int64_t index) {
      const int64_t tile = index / blocks;
      const int64_t begin = index % blocks * block;
      const int64_t end = std::min(width_, begin + block);
      const float* from = x + first_token(tile) * width_;
      if (pairs_ != nullptr) {
        FillPairs(from, width_, begin, end, token_count(tile), pairs(tile));
      } else {
        FillValues(from, width_, begin, end, token_count(tile), values(tile));
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
  // Columns begin .. end - 1 of `count` rows of x.
  static void FillValues(const float* x, int64_t width, int64_t begin, int64_t end, int64_t count,
                         float* to) {
    for (int64_t col = begin; col < end; ++col) {
      for (int64_t t = 0; t < count; ++t) to[col * count + t] = x[t * width + col];
    }
  }
  static void FillPairs(const float* x, int64_t width, int64_t begin, int64_t end, int64_t count,
                        uint32_t* to) {
    const auto bits = [](float value) { return std::bit_cast<uint32_t>(value); };
    for (int64_t col = begin; col + 1 < end; col += 2) {
      for (int64_t t = 0; t < count; ++t) {
        const float* both = x + t * width + col;
        to[col / 2 * count + t] = bits(both[0]) >> 16 | (bits(both[1]) & uint32_t{0xffff0000});
      }
    }
    if (end % 2 == 0) return;
    for (int64_t t = 0; t < count; ++t) {
      to[end / 2 * count + t] = bits(x[t * width + end - 1]) >> 16;
    }
  }
  float* values(int64_t tile) const { return values_.get() + first_token(tile) * cols_; }
  uint32_t* pairs(int64_t tile) const { return pairs_.get() + first_token(tile) * cols_ / 2; }

  int64_t tokens_;
  int64_t width_;
  int64_t cols_;
  int64_t tiles_;
  std::unique_ptr<float[]> values_;
  std::unique_ptr<uint32_t[]> pairs_;  // instead
};

}  // namespace nibble
