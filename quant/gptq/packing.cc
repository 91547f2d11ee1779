#include "quant/gptq/packing.h"

namespace nibble {
namespace {

// Pairs of nibbles [N, ceil(K / 2)], the first of a pair low; a missing last one is 0.
at::Tensor PackNibbles(const at::Tensor& nibbles) {
  const at::Tensor low = nibbles.slice(1, 0, nibbles.size(1), 2);
  at::Tensor packed = low.clone();
  const at::Tensor high = nibbles.slice(1, 1, nibbles.size(1), 2);
  packed.narrow(1, 0, high.size(1)).bitwise_or_(high.bitwise_left_shift(4));
  return packed;
}

template <class T>
void Copy(const at::Tensor& from, std::vector<T>& to) {
  TORCH_CHECK(from.numel() == static_cast<int64_t>(to.size()) && from.element_size() == sizeof(T));
  at::from_blob(to.data(), from.sizes(), from.scalar_type()).copy_(from);
}

}  // namespace

MatrixScales EmptyScales(const WeightSpec& spec, int64_t rows, int64_t cols, at::Device device) {
  const int64_t groups = GroupCount(cols, spec.group_size);
  const auto empty = [&](at::IntArrayRef shape, at::ScalarType type) {
    return at::empty(shape, at::TensorOptions(type).device(device));
  };
  MatrixScales scales;
  scales.scale = empty({rows, groups}, at::kFloat);
  scales.clamped = at::zeros({rows}, at::TensorOptions(at::kInt).device(device));
  if (spec.asymmetric) scales.zero = empty({rows, groups}, at::kByte);
  if (spec.constraint != ScaleConstraint::kNone) scales.exponent = empty({rows, groups}, at::kChar);
  if (spec.constraint == ScaleConstraint::kM2) scales.row_scale = empty({rows}, at::kFloat);
  return scales;
}

std::vector<RowScales> UnpackScales(const MatrixScales& scales) {
  const int64_t groups = scales.scale.size(1);
  std::vector<RowScales> rows(scales.scale.size(0));
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    const float* const scale = scales.scale.const_data_ptr<float>() + row * groups;
    rows[i].scale.assign(scale, scale + groups);
    rows[i].clamped = scales.clamped.const_data_ptr<int32_t>()[row];
    if (scales.row_scale.defined())
      rows[i].row_scale = scales.row_scale.const_data_ptr<float>()[row];
    if (!scales.exponent.defined()) continue;
    const int8_t* const exponent = scales.exponent.const_data_ptr<int8_t>() + row * groups;
    rows[i].exponent.assign(exponent, exponent + groups);
  }
  return rows;
}

QuantizedLinear PackMatrix(const WeightSpec& spec, const at::Tensor& codes,
                           const MatrixScales& scales) {
  QuantizedLinear result;
  result.matrix = MakeQuantizedMatrix(spec, codes.size(0), codes.size(1));
  Copy(FormatBits(spec.format) == 4 ? PackNibbles(codes) : codes, result.matrix.codes);
  if (spec.asymmetric) Copy(scales.zero, result.matrix.zero);
  switch (spec.constraint) {
    case ScaleConstraint::kNone:
      Copy(scales.scale, result.matrix.scale);
      break;
    case ScaleConstraint::kM1:
      Copy(scales.exponent, result.matrix.exponent);
      break;
    case ScaleConstraint::kM2:
      Copy(scales.row_scale, result.matrix.row_scale);
      Copy(PackNibbles(scales.exponent.view(at::kByte)), result.matrix.k);
      break;
  }
  result.clamped_groups = scales.clamped.sum().item<int64_t>();
  return result;
}

}  // namespace nibble
