#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "quant/kernels/cpu/parallel.h"
#include "quant/kernels/cpu/tensor_kernels.h"
#include "quant/kernels/device/true_values.h"
#include "quant/kernels/kernels.h"

namespace nibble {
namespace {

bool IsRmsNorm(const NormWeights& norm) { return !norm.bias.defined(); }

// Sums of f(x) over a row, by place modulo 16 and then these 16 in order: one row's sum depends on
// nothing beside it.
template <class Function>
float SumOver(const float* x, int64_t width, const Function& f) {
  std::array<float, 16> sums = {};
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) {
    for (int64_t j = 0; j < 16; ++j) sums[j] += f(x[i + j]);
  }
  for (int64_t j = 0; i + j < width; ++j) sums[j] += f(x[i + j]);
  float sum = 0;
  for (const float part : sums) sum += part;
  return sum;
}

float InverseRms(const float* x, int64_t width, double eps) {
  const float squares = SumOver(x, width, [](float value) { return value * value; });
  return 1 / std::sqrt(squares / static_cast<float>(width) + static_cast<float>(eps));
}

void LayerNormRow(const NormWeights& norm, const float* x, float* out, int64_t width) {
  const float mean =
      SumOver(x, width, [](float value) { return value; }) / static_cast<float>(width);
  const float squares =
      SumOver(x, width, [mean](float value) { return (value - mean) * (value - mean); });
  const float inverse =
      1 / std::sqrt(squares / static_cast<float>(width) + static_cast<float>(norm.eps));
  const float* gain = norm.gain.data_ptr<float>();
  const float* bias = norm.bias.data_ptr<float>();
  for (int64_t i = 0; i < width; ++i) out[i] = (x[i] - mean) * inverse * gain[i] + bias[i];
}

// f(row, x[row], out[row]) for every row of x [tokens, width]; gives out.
template <class Function>
at::Tensor MapRows(const at::Tensor& x, const Function& f) {
  const at::Tensor from = x.contiguous();
  at::Tensor out = at::empty(from.sizes(), at::kFloat);
  const int64_t width = from.size(-1);
  const float* const in = from.const_data_ptr<float>();
  float* const to = out.mutable_data_ptr<float>();
  constexpr int64_t kRowBlock = 2;  // rows worth a thread
  ParallelBlocks(from.numel() / width, kRowBlock,
                 [&](int64_t row) { f(row, in + row * width, to + row * width); });
  return out;
}

// What `prepare` makes of each row, rounded; `prepare` gives a factor of the row's scale.
template <class Function>
LinearInput RoundRows(const ActivationSpec& spec, const at::Tensor& x, const Function& prepare) {
  const int64_t width = x.size(-1);
  at::Tensor scales = at::empty({x.numel() / width, 1}, at::kFloat);
  float* const scale = scales.mutable_data_ptr<float>();
  at::Tensor values = MapRows(x, [&](int64_t row, const float* from, float* to) {
    const float factor = prepare(from, to);
    scale[row] = RoundActivationSteps(spec, absl::MakeSpan(to, width)) * factor;
  });
  return {std::move(values), std::move(scales)};
}

}  // namespace

at::Tensor Normalize(const NormWeights& norm, const at::Tensor& x) {
  if (!x.is_cpu()) return tensor::Normalize(norm, x);
  const int64_t width = x.size(-1);
  if (!IsRmsNorm(norm)) {
    return MapRows(
        x, [&](int64_t, const float* from, float* to) { LayerNormRow(norm, from, to, width); });
  }
  const float* gain = norm.gain.data_ptr<float>();
  return MapRows(x, [&](int64_t, const float* from, float* to) {
    const float inverse = InverseRms(from, width, norm.eps);
    for (int64_t i = 0; i < width; ++i) to[i] = from[i] * inverse * gain[i];
  });
}

at::Tensor LinearInput::TrueValues() const { return scales.defined() ? values * scales : values; }

LinearInput RoundActivations(const std::optional<ActivationSpec>& spec, const at::Tensor& x) {
  if (!spec) return {x, {}};
  if (!x.is_cpu()) return {RoundRowsOnCuda(*spec, x), {}};
  const int64_t width = x.size(-1);
  return RoundRows(*spec, x, [&](const float* from, float* to) {
    std::copy_n(from, width, to);
    return 1.0f;
  });
}

LinearInput NormalizeAndRound(const NormWeights& norm, const std::optional<ActivationSpec>& spec,
                              const at::Tensor& x) {
  if (!x.is_cpu()) return {tensor::NormalizeAndRound(norm, spec, x), {}};
  if (!IsRmsNorm(norm) || !spec) return RoundActivations(spec, Normalize(norm, x));
  const int64_t width = x.size(-1);
  const float* gain = norm.gain.data_ptr<float>();
  return RoundRows(*spec, x, [&](const float* from, float* to) {
    for (int64_t i = 0; i < width; ++i) to[i] = from[i] * gain[i];
    return InverseRms(from, width, norm.eps);
  });
}

}  // namespace nibble
