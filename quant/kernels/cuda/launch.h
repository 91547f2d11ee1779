// What every launcher checks and how it reports it. Free of LibTorch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "quant/base/strings.h"

namespace nibble {

// OK, or INTERNAL "<call>: <CUDA's name and text>".
inline absl::Status CheckCuda(cudaError_t error, std::string_view call) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(
      StrCat(call, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
}

// After a `<<< >>>`: whether the kernel could be queued.
inline absl::Status CheckLaunch(std::string_view kernel) {
  return CheckCuda(cudaGetLastError(), kernel);
}

// INVALID_ARGUMENT "<name>: found address <hex>, expected a multiple of <bytes> bytes" off
// alignment, "expected a device address" for a null pointer.
inline absl::Status CheckPointer(std::string_view name, const void* pointer, uintptr_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (address == 0) {
    return absl::InvalidArgumentError(
        StrCat(name, ": found a null pointer, expected a device address"));
  }
  if (address % bytes == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(StrCat(name, ": found address 0x", absl::Hex(address),
                                           ", expected a multiple of ", bytes, " bytes"));
}

}  // namespace nibble
