#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "quant/kernels/device/true_values.h"
#include "quant/kernels/kernels.h"

namespace nibble {
namespace {

bool IsRmsNorm(const NormWeights& norm) { return !norm.bias.defined(); }

// 1 / rms of each token: [tokens, 1].
at::Tensor InverseRms(const at::Tensor& x, double eps) {
  return at::rsqrt(x.square().mean(-1, /*keepdim=*/true) + eps);
}

// In f32.
at::Tensor NormalizeWide(const NormWeights& norm, const at::Tensor& x) {
  if (IsRmsNorm(norm)) return x * InverseRms(x, norm.eps) * norm.gain;
  return at::layer_norm(x, {x.size(-1)}, norm.gain, norm.bias, norm.eps);
}

}  // namespace

at::Tensor Normalize(const NormWeights& norm, const at::Tensor& x) {
  return NormalizeWide(norm, x.to(at::kFloat)).to(x.scalar_type());
}

at::Tensor RoundActivations(const std::optional<ActivationSpec>& spec, const at::Tensor& x) {
  if (!spec) return x;
  if (x.is_cuda()) return RoundRowsOnCuda(*spec, x);
  at::Tensor rounded = x.contiguous().clone();
  const int64_t width = rounded.size(-1);
  float* data = rounded.data_ptr<float>();
  at::parallel_for(0, rounded.numel() / width, /*grain_size=*/16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      RoundActivationRow(*spec, absl::MakeSpan(data + row * width, width));
    }
  });
  return rounded;
}

at::Tensor NormalizeAndRound(const NormWeights& norm, const std::optional<ActivationSpec>& spec,
                             const at::Tensor& x) {
  const at::Tensor wide = x.to(at::kFloat);
  if (!IsRmsNorm(norm) || !spec) {
    return RoundActivations(spec, NormalizeWide(norm, wide)).to(x.scalar_type());
  }
  const at::Tensor rounded = RoundActivations(spec, wide * norm.gain);
  return (rounded * InverseRms(wide, norm.eps)).to(x.scalar_type());
}

}  // namespace nibble
