// A matrix of activations as the copy engine reads it.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "absl/status/statusor.h"

namespace nibble::w4a8 {

// Boxes of 128 columns x `box_tokens` (at most 256) rows of x [tokens, pitch], E4M3, which shared
// memory gets as rows of 128 bytes under the 128-byte swizzle. Columns from `cols` on and rows from
// `tokens` on are zeros and not read. x and pitch are multiples of 16 bytes.
absl::StatusOr<CUtensorMap> MakeActivationMap(const uint8_t* x, int64_t pitch, int64_t cols,
                                              int64_t tokens, int box_tokens);

}  // namespace nibble::w4a8
