// A quantized matrix on a CUDA device. Only in builds with CUDA.
#pragma once

#include <ATen/ATen.h>

#include "quant/formats/formats.h"
#include "quant/kernels/cuda/dequantize.h"

namespace nibble {

class UploadedMatrix {
 public:
  // `matrix` is valid; it may end when this returns.
  UploadedMatrix(const QuantizedMatrix& matrix, at::Device device);
  // Valid as long as this is.
  const DeviceQuantizedMatrix& view() const { return view_; }

 private:
  at::Tensor codes_, scale_, exponent_, row_scale_, k_, zero_;
  DeviceQuantizedMatrix view_;
};

}  // namespace nibble
