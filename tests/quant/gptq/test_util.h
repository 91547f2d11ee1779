// Inputs that the tests of gptq/ share.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/status/status.h"
#include "quant/formats/formats.h"

namespace nibble {

inline WeightSpec Spec(Format format, int group_size, ScaleConstraint constraint,
                       M2Rounding rounding = M2Rounding::kMse) {
  WeightSpec spec;
  spec.format = format;
  spec.group_size = group_size;
  spec.constraint = constraint;
  spec.rounding = rounding;
  return spec;
}

inline at::Tensor RandomNormal(int64_t rows, int64_t cols, uint64_t seed) {
  return at::randn({rows, cols}, at::make_generator<at::CPUGeneratorImpl>(seed));
}

inline at::Tensor RandomWeights(int64_t rows, int64_t cols, uint64_t seed) {
  return RandomNormal(rows, cols, seed);
}

// Inputs [4 cols, cols] that share cols / 8 directions, as hidden states do, and a little noise.
inline at::Tensor CorrelatedInputs(int64_t cols, uint64_t seed) {
  const int64_t shared = cols / 8;
  const at::Tensor x =
      RandomNormal(4 * cols, shared, seed).mm(RandomNormal(shared, cols, seed + 1));
  return x + 0.3 * RandomNormal(4 * cols, cols, seed + 2);
}

inline at::Tensor CorrelatedHessian(int64_t cols, uint64_t seed) {
  const at::Tensor x = CorrelatedInputs(cols, seed);
  return x.t().mm(x).contiguous();
}

inline void ExpectRefused(const absl::Status& status, const std::string& expected) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_NE(std::string(status.message()).find(expected), std::string::npos) << status;
}

}  // namespace nibble
