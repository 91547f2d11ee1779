// Work on the threads that LibTorch computes with: those of the one OpenMP library in the process,
// so that no two pools stand in each other's way. (at::parallel_for would need OpenMP in every file
// that calls it, and runs on one thread without.)
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"

namespace nibble {

// How many threads RunOnThreads uses: OMP_NUM_THREADS, else the cores; 1 inside of it.
int ThreadCount();
// Calls work(thread) once on each, numbered from the calling one's 0. It must not throw.
void RunOnThreads(const std::function<void(int)>& work);
// Calls work() on the calling thread and keeps the others awake meanwhile for its RunOnThreads:
// then they are at hand in a fraction of a microsecond. What work() throws is thrown. OpenMP sees
// one parallel region, so that LibTorch's own functions run on the calling thread alone.
void WithThreads(const std::function<void()>& work);
// Ends the calling thread's helpers; its next RunOnThreads starts them anew. For a thread that is
// done: with more helpers alive than there are cores, those of every thread go to sleep at once
// after a piece of work, and waking them takes longer than most pieces.
void EndThreads();

// Inside WithThreads: what the calling thread will soon have its threads read, each an equal share
// of the bytes in this order. Until then those that have nothing to do fetch their shares into
// their caches, and then the calling thread's. Replaces what was expected before.
void ExpectReads(absl::Span<const absl::Span<const uint8_t>> ranges);

// Calls task(i) for every i in 0 .. count - 1. Each thread has a share of neighbours, which it
// takes in rising order, and then helps with the others'.
template <class Task>
void ParallelTasks(int64_t count, const Task& task) {
  const int64_t threads = std::min<int64_t>(ThreadCount(), count);
  if (threads <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  struct alignas(64) Share {  // of a cache line of its own
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Share> shares(threads);
  for (int64_t i = 0; i < threads; ++i) {
    shares[i].next = i * count / threads;
    shares[i].end = (i + 1) * count / threads;
  }
  RunOnThreads([&](int thread) {
    for (int64_t i = 0; i < threads; ++i) {
      Share& share = shares[(thread + i) % threads];
      while (true) {
        const int64_t index = share.next.fetch_add(1, std::memory_order_relaxed);
        if (index >= share.end) break;
        task(index);
      }
    }
  });
}

// Calls task(i) for every i in 0 .. count - 1, `block` neighbours on one thread.
template <class Task>
void ParallelBlocks(int64_t count, int64_t block, const Task& task) {
  ParallelTasks((count + block - 1) / block, [&](int64_t index) {
    const int64_t end = std::min(count, (index + 1) * block);
    for (int64_t i = index * block; i < end; ++i) task(i);
  });
}

}  // namespace nibble
