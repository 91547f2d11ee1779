// Calling a launcher of a CUDA kernel from code on LibTorch tensors. Only in builds with CUDA.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <string>

#include "absl/status/status.h"

namespace nibble {

// The device of some tensors made current, and its stream.
class CudaScope {
 public:
  explicit CudaScope(at::Device device) : guard_(device) {
    // The launchers' CUDA runtime may be another copy than LibTorch's, with a device of its own.
    C10_CUDA_CHECK(cudaSetDevice(c10::cuda::current_device()));
  }
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }

 private:
  c10::cuda::CUDAGuard guard_;
};

inline void ThrowIfError(const absl::Status& status) {
  TORCH_CHECK(status.ok(), status.ToString());
}

}  // namespace nibble
