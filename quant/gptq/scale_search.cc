#include "quant/gptq/scale_search.h"

#include <algorithm>
#include <array>
#include <utility>

#include "quant/formats/number.h"
#include "quant/gptq/options.h"

namespace nibble {
namespace {

// From 1 down: of equal errors the largest scale's is found first.
constexpr std::array<float, kScaleFractions> kFractions = {1.f, .95f, .9f, .85f, .8f, .75f,
                                                           .7f, .65f, .6f, .55f, .5f};

// number::Float::Round of magnitudes, which are overwritten.
template <int kBits, int kMantissa, int kMinExponent, uint32_t kMaxCode>
at::Tensor RoundMagnitudes(number::Float<kBits, kMantissa, kMinExponent, kMaxCode> type,
                           at::Tensor x) {
  constexpr int kFloor = (kMinExponent + 127) << 23;
  x.clamp_max_(decltype(type)::kMax);
  const at::Tensor magic = x.view(at::kInt)
                               .bitwise_and(static_cast<int64_t>(number::kExponentBits))
                               .clamp_min_(kFloor)
                               .add_((23 - kMantissa) << 23)
                               .view(at::kFloat);
  return x.add_(magic).sub_(magic);
}

// number::Integer::Round of magnitudes, which are overwritten.
template <int kBits>
at::Tensor RoundMagnitudes(number::Integer<kBits> type, at::Tensor x) {
  return x.clamp_max_(decltype(type)::kMax).round_();
}

at::Tensor RoundMagnitudes(Format format, const at::Tensor& x) {
  return number::Visit(format, [&](auto type) { return RoundMagnitudes(type, x); });
}

// number::RoundedLog2(...).floor and .ceil of positive normal f64; i64.
at::Tensor FloorLog2(const at::Tensor& x) {
  return x.view(at::kLong).bitwise_right_shift(52) - 1023;
}
at::Tensor CeilLog2(const at::Tensor& x) {
  const at::Tensor mantissa = x.view(at::kLong).bitwise_and((int64_t{1} << 52) - 1);
  return FloorLog2(x) + mantissa.ne(0);
}

// number::PowerOfTwo of i64 exponents.
at::Tensor PowersOfTwo(const at::Tensor& exponents) {
  return (exponents + 127).to(at::kInt).bitwise_left_shift(23).view(at::kFloat);
}

// A choice for each element, with its error, f64; the first of equal ones stays.
struct Choice {
  at::Tensor value;
  at::Tensor error;

  void Consider(const at::Tensor& other, const at::Tensor& other_error) {
    if (!error.defined()) {
      value = other;
      error = other_error;
      return;
    }
    const at::Tensor better = other_error < error;
    value = at::where(better, other, value);
    error = at::where(better, other_error, error);
  }
};

// Some rows of a matrix; G is the number of groups.
class RowsSearch {
 public:
  // root_weights: f32 [K], sqrt(h).
  RowsSearch(const WeightSpec& spec, const at::Tensor& w, const at::Tensor& root_weights)
      : spec_(spec) {
    const int64_t cols = w.size(1);
    const int64_t width = GroupWidth(cols, spec.group_size);
    const int64_t groups = GroupCount(cols, spec.group_size);
    const std::array<int64_t, 2> padding = {0, groups * width - cols};
    magnitudes_ = at::constant_pad_nd(w.abs(), padding).view({w.size(0), groups, width});
    root_weights_ = at::constant_pad_nd(root_weights, padding).view({groups, width});
    // A tensor of the device: by a number, CUDA would multiply by its inverse.
    const at::Tensor largest = at::full({1}, FormatMax(spec.format), w.options());
    group_scale_ = magnitudes_.amax(-1).div(largest).clamp_min_(kMinScale);
  }

  // Of these rows, row_scale with a second dimension of 1.
  MatrixScales Find() const {
    switch (spec_.constraint) {
      case ScaleConstraint::kNone:
        return FindReal();
      case ScaleConstraint::kM1:
        return FindM1();
      case ScaleConstraint::kM2:
        return FindM2();
    }
    __builtin_unreachable();
  }

 private:
  // Of every group under its scale: f32 [N, G] to f64 [N, G]. Roots of h, because h times what
  // overflows would not be a number where h is 0.
  at::Tensor Error(const at::Tensor& scale) const {
    const at::Tensor steps = scale.unsqueeze(-1);
    return RoundMagnitudes(spec_.format, magnitudes_ / steps)
        .mul_(steps)
        .sub_(magnitudes_)
        .mul_(root_weights_)
        .square_()
        .sum(-1, /*keepdim=*/false, at::kDouble);
  }

  MatrixScales FindReal() const {
    Choice best;
    for (const float fraction : kFractions) {
      const at::Tensor scale = (group_scale_ * fraction).clamp_min_(kMinScale);
      best.Consider(scale, Error(scale));
    }
    MatrixScales scales;
    scales.scale = best.value;
    scales.clamped = at::zeros({scales.scale.size(0)}, scales.scale.options().dtype(at::kInt));
    return scales;
  }

  MatrixScales FindM1() const {
    const at::Tensor ceil = CeilLog2(group_scale_.to(at::kDouble));
    const at::Tensor high = ceil.amax(1, /*keepdim=*/true);
    const at::Tensor low = high - kMaxExponentOffset;
    Choice best;
    for (const int offset : std::array<int, kScaleExponents>{0, -1, 1, -2}) {
      const at::Tensor exponent = (ceil + offset).clamp(low, high);
      best.Consider(exponent, Error(PowersOfTwo(exponent)));
    }
    MatrixScales scales;
    scales.scale = PowersOfTwo(best.value);
    scales.exponent = best.value.to(at::kChar);
    scales.clamped = ceil.lt(low).sum(1).to(at::kInt);
    return scales;
  }

  // The groups' best k under one scale of each row: f32 [N, 1].
  Choice BestOffsets(const at::Tensor& row_scale, const at::Tensor& ratio) const {
    const at::Tensor ceil = CeilLog2(ratio);
    const at::Tensor floor = FloorLog2(ratio);
    Choice best;
    const std::array<at::Tensor, kScaleExponents> offsets = {ceil, floor, ceil + 1, floor - 1};
    for (const at::Tensor& offset : offsets) {
      const at::Tensor k = offset.clamp(0, kMaxExponentOffset);
      best.Consider(k, Error(row_scale * PowersOfTwo(-k)));
    }
    return best;
  }

  MatrixScales FindM2() const {
    const at::Tensor largest = group_scale_.amax(1, /*keepdim=*/true);
    const at::Tensor wide = group_scale_.to(at::kDouble);
    Choice best_row;
    at::Tensor best_k;
    for (const float fraction : kFractions) {
      const at::Tensor row_scale = (largest * fraction).clamp_min_(kMinScale);
      const Choice k = BestOffsets(row_scale, row_scale.to(at::kDouble) / wide);
      const at::Tensor total = k.error.sum(1, /*keepdim=*/true);
      best_k = best_k.defined() ? at::where(total < best_row.error, k.value, best_k) : k.value;
      best_row.Consider(row_scale, total);
    }
    MatrixScales scales;
    scales.scale = best_row.value * PowersOfTwo(-best_k);
    scales.row_scale = best_row.value;
    scales.exponent = best_k.to(at::kChar);
    const at::Tensor wanted = CeilLog2(best_row.value.to(at::kDouble) / wide);
    scales.clamped = wanted.gt(kMaxExponentOffset).sum(1).to(at::kInt);
    return scales;
  }

  const WeightSpec& spec_;
  at::Tensor magnitudes_;    // f32 [N, G, width], a short last group ends in zeros
  at::Tensor root_weights_;  // f32 [G, width]
  at::Tensor group_scale_;   // f32 [N, G], ComputeGroupScale's
};

}  // namespace

MatrixScales SearchScales(const WeightSpec& spec, const at::Tensor& w,
                          const at::Tensor& column_weights) {
  MatrixScales scales = EmptyScales(spec, w.size(0), w.size(1), w.device());
  const at::Tensor root_weights = column_weights.sqrt();
  const int64_t step = std::max<int64_t>(1, kScaleSearchValues / w.size(1));
  for (int64_t begin = 0; begin < w.size(0); begin += step) {
    const int64_t end = std::min(begin + step, w.size(0));
    const MatrixScales found = RowsSearch(spec, w.slice(0, begin, end), root_weights).Find();
    scales.scale.slice(0, begin, end).copy_(found.scale);
    scales.clamped.slice(0, begin, end).copy_(found.clamped);
    if (found.exponent.defined()) scales.exponent.slice(0, begin, end).copy_(found.exponent);
    if (found.row_scale.defined()) {
      scales.row_scale.slice(0, begin, end).copy_(found.row_scale.squeeze(1));
    }
  }
  return scales;
}

at::Tensor RoundTensor(Format format, const at::Tensor& x) {
  return RoundMagnitudes(format, x.abs()).copysign(x);
}

}  // namespace nibble
