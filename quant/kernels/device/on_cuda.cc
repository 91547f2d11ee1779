#include "quant/kernels/cuda/dequantize.h"
#include "quant/kernels/cuda/rounding.h"
#include "quant/kernels/device/bf16.h"
#include "quant/kernels/device/launch.h"
#include "quant/kernels/device/true_values.h"
#include "quant/kernels/device/uploaded_matrix.h"

namespace nibble {
namespace {

void CheckType(at::ScalarType type) {
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "found a tensor of ", at::toString(type),
              ", expected Float or BFloat16");
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
    ThrowIfError(
        RoundActivationRows(spec, Bf16(rows), tokens, width, MutableBf16(rounded), scope.stream()));
  }
  return rounded;
}

at::Tensor DequantizeOnCuda(const QuantizedMatrix& matrix, const at::TensorOptions& options) {
  const at::Device device = options.device();
  const CudaScope scope(device);
  const UploadedMatrix on_device(matrix, device);
  const at::ScalarType type = options.dtype().toScalarType();
  CheckType(type);
  at::Tensor values = at::empty({matrix.rows, matrix.cols}, options);
  ThrowIfError(type == at::kFloat
                   ? Dequantize(on_device.view(), values.mutable_data_ptr<float>(), scope.stream())
                   : Dequantize(on_device.view(), MutableBf16(values), scope.stream()));
  return values;
}

}  // namespace nibble
