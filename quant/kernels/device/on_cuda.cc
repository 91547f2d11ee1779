#include <cuda_bf16.h>

#include <vector>

#include "quant/kernels/cuda/dequantize.h"
#include "quant/kernels/cuda/rounding.h"
#include "quant/kernels/device/launch.h"
#include "quant/kernels/device/true_values.h"

namespace nibble {
namespace {

const __nv_bfloat16* Bf16Data(const at::Tensor& tensor) {
  return reinterpret_cast<const __nv_bfloat16*>(tensor.const_data_ptr<at::BFloat16>());
}

__nv_bfloat16* MutableBf16Data(const at::Tensor& tensor) {
  return reinterpret_cast<__nv_bfloat16*>(tensor.mutable_data_ptr<at::BFloat16>());
}

void CheckType(at::ScalarType type) {
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "found a tensor of ", at::toString(type),
              ", expected Float or BFloat16");
}

template <class T>
at::Tensor Upload(const std::vector<T>& values, at::ScalarType type, at::Device device) {
  const auto count = static_cast<int64_t>(values.size());
  return at::from_blob(const_cast<T*>(values.data()), {count}, type).to(device);
}

}  // namespace

at::Tensor RoundRowsOnCuda(const ActivationSpec& spec, const at::Tensor& x) {
  CheckType(x.scalar_type());
  const CudaScope scope(x.device());
  const at::Tensor rows = x.contiguous();
  at::Tensor rounded = at::empty_like(rows);
  const int64_t width = rows.size(-1);
  const int64_t tokens = rows.numel() / width;
  if (rows.scalar_type() == at::kFloat) {
    ThrowIfError(RoundActivationRows(spec, rows.const_data_ptr<float>(), tokens, width,
                                     rounded.mutable_data_ptr<float>(), scope.stream()));
  } else {
    ThrowIfError(RoundActivationRows(spec, Bf16Data(rows), tokens, width, MutableBf16Data(rounded),
                                     scope.stream()));
  }
  return rounded;
}

at::Tensor DequantizeOnCuda(const QuantizedMatrix& matrix, const at::TensorOptions& options) {
  const at::Device device = options.device();
  const CudaScope scope(device);
  const at::Tensor codes = Upload(matrix.codes, at::kByte, device);
  const at::Tensor scale = Upload(matrix.scale, at::kFloat, device);
  const at::Tensor exponent = Upload(matrix.exponent, at::kChar, device);
  const at::Tensor row_scale = Upload(matrix.row_scale, at::kFloat, device);
  const at::Tensor k = Upload(matrix.k, at::kByte, device);
  const at::Tensor zero = Upload(matrix.zero, at::kByte, device);
  const DeviceQuantizedMatrix on_device = {
      .spec = matrix.spec,
      .rows = matrix.rows,
      .cols = matrix.cols,
      .codes = codes.const_data_ptr<uint8_t>(),
      .scale = scale.const_data_ptr<float>(),
      .exponent = exponent.const_data_ptr<int8_t>(),
      .row_scale = row_scale.const_data_ptr<float>(),
      .k = k.const_data_ptr<uint8_t>(),
      .zero = zero.const_data_ptr<uint8_t>(),
  };
  const at::ScalarType type = options.dtype().toScalarType();
  CheckType(type);
  at::Tensor values = at::empty({matrix.rows, matrix.cols}, options);
  ThrowIfError(type == at::kFloat
                   ? Dequantize(on_device, values.mutable_data_ptr<float>(), scope.stream())
                   : Dequantize(on_device, MutableBf16Data(values), scope.stream()));
  return values;
}

}  // namespace nibble
