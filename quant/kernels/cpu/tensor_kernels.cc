#include "quant/kernels/cpu/tensor_kernels.h"

namespace nibble::tensor {
namespace {

// q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim].
at::Tensor AttendOne(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const int64_t repeat = q.size(1) / k.size(1);
  const auto heads_first = [](const at::Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
  const auto widen = [&](const at::Tensor& x) {
    return repeat == 1 ? x : x.repeat_interleave(repeat, 1);
  };
  const at::Tensor out = at::scaled_dot_product_attention(heads_first(q), heads_first(widen(k)),
                                                          heads_first(widen(v)), std::nullopt,
                                                          /*dropout_p=*/0.0, /*is_causal=*/true);
  return out.squeeze(0).transpose(0, 1);
}

// 1 / rms of each token: [tokens, 1].
at::Tensor InverseRms(const at::Tensor& x, double eps) {
  return at::rsqrt(x.square().mean(-1, /*keepdim=*/true) + eps);
}

// x: f32.
at::Tensor NormalizeWide(const NormWeights& norm, const at::Tensor& x) {
  if (!norm.bias.defined()) return x * InverseRms(x, norm.eps) * norm.gain;
  return at::layer_norm(x, {x.size(-1)}, norm.gain, norm.bias, norm.eps);
}

}  // namespace

at::Tensor Normalize(const NormWeights& norm, const at::Tensor& x) {
  return NormalizeWide(norm, x.to(at::kFloat)).to(x.scalar_type());
}

at::Tensor NormalizeAndRound(const NormWeights& norm, const std::optional<ActivationSpec>& spec,
                             const at::Tensor& x) {
  const at::Tensor wide = x.to(at::kFloat);
  if (norm.bias.defined() || !spec) {
    return RoundActivations(spec, NormalizeWide(norm, wide)).TrueValues().to(x.scalar_type());
  }
  const at::Tensor rounded = RoundActivations(spec, wide * norm.gain).TrueValues();
  return (rounded * InverseRms(wide, norm.eps)).to(x.scalar_type());
}

void ApplyRotary(at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  at::Tensor low = x.narrow(-1, 0, half);
  at::Tensor high = x.narrow(-1, half, half);
  const at::Tensor c = cos.unsqueeze(1);  // [tokens, 1, half]
  const at::Tensor s = sin.unsqueeze(1);
  const at::Tensor rotated_low = low * c - high * s;
  const at::Tensor rotated_high = high * c + low * s;
  low.copy_(rotated_low);
  high.copy_(rotated_high);
}

at::Tensor SiluMultiply(const at::Tensor& gate, const at::Tensor& up) {
  return at::silu(gate) * up;
}

at::Tensor Attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     absl::Span<const Segment> segments) {
  at::Tensor out = at::empty_like(q);
  for (const Segment& segment : segments) {
    const auto rows = [&](const at::Tensor& x) {
      return x.narrow(0, segment.first_row, segment.length);
    };
    rows(out).copy_(AttendOne(rows(q), rows(k), rows(v)));
  }
  return out;
}

}  // namespace nibble::tensor
