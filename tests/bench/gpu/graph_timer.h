// Times kernels as a decode step runs them: many launches in one CUDA graph, the median of replays.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "absl/status/status.h"
#include "quant/kernels/cuda/launch.h"

namespace nibble {

// A bench has nobody to hand an error to.
inline void OrDie(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}
inline void OrDie(cudaError_t error) { OrDie(CheckCuda(error, "CUDA")); }

// Microseconds of one of `count` calls launch(stream, i) captured one after the other.
template <class Launch>
double GraphMicroseconds(int count, Launch&& launch) {
  constexpr int kReplays = 7;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaEvent_t begin;
  cudaEvent_t end;
  OrDie(cudaStreamCreate(&stream));
  OrDie(cudaEventCreate(&begin));
  OrDie(cudaEventCreate(&end));
  OrDie(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) OrDie(launch(stream, i));
  OrDie(cudaStreamEndCapture(stream, &graph));
  OrDie(cudaGraphInstantiate(&exec, graph, 0));
  std::vector<double> times;
  for (int replay = -2; replay < kReplays; ++replay) {
    OrDie(cudaEventRecord(begin, stream));
    OrDie(cudaGraphLaunch(exec, stream));
    OrDie(cudaEventRecord(end, stream));
    OrDie(cudaEventSynchronize(end));
    float milliseconds = 0;
    OrDie(cudaEventElapsedTime(&milliseconds, begin, end));
    if (replay >= 0) times.push_back(1e3 * milliseconds / count);
  }
  OrDie(cudaGraphExecDestroy(exec));
  OrDie(cudaGraphDestroy(graph));
  OrDie(cudaEventDestroy(begin));
  OrDie(cudaEventDestroy(end));
  OrDie(cudaStreamDestroy(stream));
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  return times[kReplays / 2];
}

}  // namespace nibble
