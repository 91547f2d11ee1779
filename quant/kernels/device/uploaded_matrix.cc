#include "quant/kernels/device/uploaded_matrix.h"

#include <vector>

namespace nibble {
namespace {

template <class T>
at::Tensor Upload(const std::vector<T>& values, at::ScalarType type, at::Device device) {
  const auto count = static_cast<int64_t>(values.size());
  return at::from_blob(const_cast<T*>(values.data()), {count}, type).to(device);
}

}  // namespace

UploadedMatrix::UploadedMatrix(const QuantizedMatrix& matrix, at::Device device)
    : codes_(Upload(matrix.codes, at::kByte, device)),
      scale_(Upload(matrix.scale, at::kFloat, device)),
      exponent_(Upload(matrix.exponent, at::kChar, device)),
      row_scale_(Upload(matrix.row_scale, at::kFloat, device)),
      k_(Upload(matrix.k, at::kByte, device)),
      zero_(Upload(matrix.zero, at::kByte, device)),
      view_{.spec = matrix.spec,
            .rows = matrix.rows,
            .cols = matrix.cols,
            .codes = codes_.const_data_ptr<uint8_t>(),
            .scale = scale_.const_data_ptr<float>(),
            .exponent = exponent_.const_data_ptr<int8_t>(),
            .row_scale = row_scale_.const_data_ptr<float>(),
            .k = k_.const_data_ptr<uint8_t>(),
            .zero = zero_.const_data_ptr<uint8_t>()} {}

}  // namespace nibble
