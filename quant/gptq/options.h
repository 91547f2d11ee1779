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

}  // namespace nibble
