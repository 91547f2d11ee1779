// Leading singular vectors, exactly or by iteration. Private to gptq/.
#pragma once

#include <ATen/ATen.h>

namespace nibble {

// Of a matrix M [N, K], in M's type.
struct LeftVectors {
  // [N, r], orthonormal; zero where the singular value is 0, iterated: too small for f32 to see
  // beside the largest.
  at::Tensor vectors;
  at::Tensor values;  // [r], falling
};

// From the eigenvectors of the smaller of M M^T and M^T M. m: f64, which holds the square of every
// singular value that f32 input can resolve.
LeftVectors ExactLeftVectors(const at::Tensor& m, int64_t rank);

// By subspace iteration from a fixed start: the energy (sum of squared values) that the vectors
// capture is within 1e-3 of the best. m: f32; a few dozen products of it with about rank + 16
// vectors, where the exact way has one with itself and an eigenvalue problem of its smaller side.
LeftVectors IteratedLeftVectors(const at::Tensor& m, int64_t rank);

// 1 / x, and 0 for 0.
at::Tensor InverseOrZero(const at::Tensor& x);

}  // namespace nibble
