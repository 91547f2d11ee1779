// The sampler of quant/kernels/plan/sampling.h done in the plainest way: sort, then walk.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "quant/kernels/plan/sampling.h"

namespace nibble {

inline int32_t SampleByReference(const std::vector<float>& logits, const SamplingRow& row,
                                 int64_t position) {
  float largest = -INFINITY;
  for (const float logit : logits) {
    if (std::isnan(logit)) return -1;
    largest = std::max(largest, logit);
  }
  if (!std::isfinite(largest)) return -1;
  if (row.bits_per_logit == 0) {
    return static_cast<int32_t>(std::find(logits.begin(), logits.end(), largest) - logits.begin());
  }
  std::vector<uint32_t> depth;
  for (const float logit : logits) depth.push_back(DepthOf(logit, largest, row.bits_per_logit));
  std::vector<int32_t> ranked(logits.size());
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(),
                   [&](int32_t a, int32_t b) { return depth[a] < depth[b]; });
  const auto weight_of_head = [&](size_t count) {
    uint64_t sum = 0;
    for (size_t i = 0; i < std::min(count, ranked.size()); ++i) sum += WeightOf(depth[ranked[i]]);
    return sum;
  };
  const uint64_t top_k = weight_of_head(row.top_k > 0 ? row.top_k : ranked.size());
  uint64_t kept = top_k;
  uint64_t min_p = 0;
  for (const int32_t id : ranked) {
    if (depth[id] <= row.min_p_depth) min_p += WeightOf(depth[id]);
  }
  kept = std::min(kept, min_p);
  const auto token_at = [&](uint64_t place) {  // rank of the token into which it falls
    size_t rank = 0;
    for (uint64_t sum = WeightOf(depth[ranked[0]]); sum <= place;
         sum += WeightOf(depth[ranked[++rank]])) {
    }
    return rank;
  };
  if (row.top_p < uint64_t{1} << 32) {
    const size_t last = token_at(MultiplyShift(top_k - 1, row.top_p, 32));
    kept = std::min(kept, weight_of_head(last + 1));
  }
  return ranked[token_at(MultiplyShift(kept, UniformBits(row.seed, position), 53))];
}

}  // namespace nibble
