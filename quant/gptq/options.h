// How a matrix is quantized; torch-free, so that job specifications can hold it.
#pragma once

#include <cstdint>

namespace nibble {

enum class Method { kGptq, kRtn };

struct GptqOptions {
  bool act_order = true;  // columns by falling diag(H), scales from the original weights
  double damping = 0.01;  // of the mean diagonal of H
  int64_t block_columns = 128;
};

// kWeight: plain SVD of the error (ZeroQuant-V2). kInput: SVD in the metric of H.
enum class LorcMetric { kWeight, kInput };

// Where scales come from. kNone: from each group's largest weight. kDiagonal: the best of some
// candidates by the rounding errors that diag(H) weighs.
enum class ScaleSearch { kNone, kDiagonal };

// Candidates of the search for one group: fractions of a scale, exponents of a power of two; with
// M2 both (gptq/scale_search.h).
inline constexpr int kScaleFractions = 11;
inline constexpr int kScaleExponents = 4;

// So many weights, or one row, are searched at a time; each takes about 8 temporaries of 4 bytes.
inline constexpr int64_t kScaleSearchValues = int64_t{1} << 20;

// Most rounds of quantizing what LoRC leaves and correcting what that leaves.
inline constexpr int kMostLorcIterations = 16;

}  // namespace nibble
