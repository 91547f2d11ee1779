#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace nibble {

// Calls task(i) for every i in 0 .. count - 1 on LibTorch's threads, each taking the next one that
// is left.
template <class Task>
void ParallelTasks(int64_t count, const Task& task) {
  std::atomic<int64_t> next = 0;
  const int64_t threads = std::min<int64_t>(count, at::get_num_threads());
  at::parallel_for(0, threads, /*grain_size=*/1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

}  // namespace nibble
