// GPTQ's inner loop over one block of columns, in plain C++: 128 small tensor calls a block would
// cost more than the arithmetic. Private to gptq/.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "quant/formats/formats.h"

namespace nibble {

// Consecutive columns, in the order of the solve, that are quantized before their errors are spread
// over the columns behind them.
struct ColumnBlock {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// The blocks of `cols` columns. A block is cut short at the first column of a group that reaches
// beyond it, if scales are taken from updated weights: every column of the group has then received
// every update when its scale is computed.
enum class ScaleSource { kOriginalWeights, kUpdatedWeights };
std::vector<ColumnBlock> MakeBlocks(int64_t cols, int64_t block_columns, int group_size,
                                    ScaleSource source);

// What every row of a solve shares.
struct SolverPlan {
  const WeightSpec* spec = nullptr;
  ScaleSource source = ScaleSource::kOriginalWeights;
  absl::Span<const int64_t> order;  // [K] original column of each column of the solve
  const float* hinv = nullptr;      // [K, K] upper factor
  int64_t cols = 0;                 // K
};

// Quantizes the block's columns of one row.
//   weights  [K] the row in the order of the solve; the block's columns receive the block's updates
//   scales   of the row; replaced group by group when they come from updated weights
//   codes    [K] in the original order
//   errors   [block.size()] (w - w_hat) / hinv[j, j], for the columns behind the block
void SolveBlock(const SolverPlan& plan, const ColumnBlock& block, float* weights, RowScales& scales,
                uint8_t* codes, float* errors);

}  // namespace nibble
