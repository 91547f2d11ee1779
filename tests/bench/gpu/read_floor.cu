// How long one kernel takes merely to read cold bytes: what no kernel that reads them can undercut.
// The best of a few grids, launch included.
#include <cuda_runtime.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <limits>
#include <vector>

#include "quant/kernels/cuda/launch.h"
#include "tests/bench/gpu/device_buffer.h"
#include "tests/bench/gpu/graph_timer.h"

namespace nibble {
namespace {

constexpr int kThreads = 512;

// Streams through the first-level cache without staying there.
__device__ __forceinline__ uint4 LoadOnce(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// Reads words[count]; each thread has kUnroll loads in flight. `sink` keeps them from being dropped
// and is written for one sum in 2^32 only.
template <int kUnroll>
__global__ void __launch_bounds__(kThreads)
    ReadAll(const uint4* words, int64_t count, uint32_t* sink) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  uint32_t sum = 0;
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = LoadOnce(words + i + u * stride);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  for (; i < count; i += stride) {
    const uint4 v = LoadOnce(words + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x9e3779b9u) *sink = sum;
}

template <int kUnroll>
double Time(const std::deque<Buffer>& copies, int64_t bytes, int blocks, uint32_t* sink) {
  const int count = static_cast<int>(copies.size());
  return GraphMicroseconds(ColdLaunches(count), [&](cudaStream_t stream, int i) {
    ReadAll<kUnroll>
        <<<blocks, kThreads, 0, stream>>>(copies[i % count].as<const uint4>(), bytes / 16, sink);
    return CheckLaunch("ReadAll");
  });
}

void Measure(int64_t bytes) {
  int multiprocessors = 0;
  OrDie(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  std::deque<Buffer> copies;
  const int count = ColdCopies(bytes);
  for (int i = 0; i < count; ++i) copies.emplace_back(static_cast<size_t>(bytes));
  const Buffer sink(4);
  double best = std::numeric_limits<double>::infinity();
  for (const int blocks : {1, 2, 3, 4}) {  // of a multiprocessor
    const int grid = blocks * multiprocessors;
    best = std::min(best, Time<2>(copies, bytes, grid, sink.as<uint32_t>()));
    best = std::min(best, Time<4>(copies, bytes, grid, sink.as<uint32_t>()));
    best = std::min(best, Time<8>(copies, bytes, grid, sink.as<uint32_t>()));
  }
  std::printf("%lld B: %.2f us %.3f TB/s\n", static_cast<long long>(bytes), best,
              static_cast<double>(bytes) / best / 1e6);
  std::fflush(stdout);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  CLI::App app(
      "Microseconds of one kernel that reads so many cold bytes, within a CUDA graph, on the first "
      "GPU.\nexample: build/cuda/bin/read_floor --bytes 33849344,8470528",
      "read_floor");
  std::vector<int64_t> sizes = {33849344};
  app.add_option("--bytes", sizes, "bytes to read, e.g. those that linear_bench prints")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{16}, int64_t{1} << 32))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  for (const int64_t bytes : sizes) nibble::Measure(bytes);
  return 0;
}
