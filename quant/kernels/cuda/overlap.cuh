// Programmatic dependent launch: a kernel may start while the one before it in the stream still
// runs, do what doesn't depend on it, and then wait. Kept when a stream is captured into a graph.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "quant/kernels/cuda/launch.h"

namespace nibble {

// Returns when every kernel queued before has ended and its writes are visible. A kernel launched
// by LaunchOverlapped reads and writes nothing that another kernel touches before this.
__device__ inline void WaitForEarlierKernels() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the next kernel start once every block has come here or ended.
__device__ inline void LetNextKernelStart() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Queues a kernel that begins with WaitForEarlierKernels or does so before its first access.
template <class... Parameters, class... Arguments>
absl::Status LaunchOverlapped(std::string_view name, void (*kernel)(Parameters...), dim3 grid,
                              dim3 block, size_t shared_bytes, cudaStream_t stream,
                              Arguments&&... arguments) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return CheckCuda(
      cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...), name);
}

}  // namespace nibble
