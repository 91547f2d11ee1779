#pragma once

#include <optional>

#include "quant/kernels/cpu/arranged_matrix.h"
#include "quant/kernels/kernels.h"

namespace nibble {

// LinearWeights::arranged: weight [N, K], lorc_a [N, r], lorc_b [r, K].
struct ArrangedLinear {
  ArrangedMatrix weight;
  std::optional<ArrangedMatrix> lorc_a;
  std::optional<ArrangedMatrix> lorc_b;
};

}  // namespace nibble
