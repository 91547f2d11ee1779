// The functions of kernels.h by LibTorch's operators, for tensors on a device that has no kernels
// of its own here.
#pragma once

#include <ATen/ATen.h>

#include <optional>

#include "absl/types/span.h"
#include "quant/kernels/kernels.h"

namespace nibble::tensor {

at::Tensor Normalize(const NormWeights& norm, const at::Tensor& x);
at::Tensor NormalizeAndRound(const NormWeights& norm, const std::optional<ActivationSpec>& spec,
                             const at::Tensor& x);
void ApplyRotary(at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);
at::Tensor SiluMultiply(const at::Tensor& gate, const at::Tensor& up);
// Without a cache: every segment starts at position 0.
at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     absl::Span<const Segment> segments);

}  // namespace nibble::tensor
