#include "quant/gptq/solver.h"

#include <algorithm>

namespace nibble {

std::vector<ColumnBlock> MakeBlocks(int64_t cols, int64_t block_columns, int group_size,
                                    ScaleSource source) {
  const int64_t width = GroupWidth(cols, group_size);
  std::vector<ColumnBlock> blocks;
  for (int64_t begin = 0; begin < cols; begin = blocks.back().end) {
    int64_t end = std::min(cols, begin + block_columns);
    const int64_t last_group = (end - 1) / width * width;
    const bool reaches_beyond = std::min(cols, last_group + width) > end;
    if (source == ScaleSource::kUpdatedWeights && last_group > begin && reaches_beyond) {
      end = last_group;
    }
    blocks.push_back({begin, end});
  }
  return blocks;
}

void SolveBlock(const SolverPlan& plan, const ColumnBlock& block, float* weights, RowScales& scales,
                uint8_t* codes, float* errors) {
  const WeightSpec& spec = *plan.spec;
  const int64_t width = GroupWidth(plan.cols, spec.group_size);
  for (int64_t j = block.begin; j < block.end; ++j) {
    const int64_t column = plan.order[j];
    const int64_t group = column / width;
    if (plan.source == ScaleSource::kUpdatedWeights && column % width == 0) {
      const int64_t count = std::min(width, plan.cols - column);
      UpdateGroupScale(spec, absl::MakeConstSpan(weights + column, count), group, scales);
    }
    const float scale = scales.scale[group];
    const uint8_t zero = spec.asymmetric ? scales.zero[group] : 0;
    codes[column] = QuantizeWeight(spec, weights[j], scale, zero);
    const float w_hat = DequantizeWeight(spec, codes[column], scale, zero);
    const float* hinv = plan.hinv + j * plan.cols;
    const float error = (weights[j] - w_hat) / hinv[j];
    for (int64_t t = j; t < block.end; ++t) weights[t] -= error * hinv[t];
    errors[j - block.begin] = error;
  }
}

}  // namespace nibble
