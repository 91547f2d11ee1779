// Work on the threads that LibTorch computes with: those of the one OpenMP library in the process,
// so that no two pools stand in each other's way. (at::parallel_for would need OpenMP in every file
// that calls it, and runs on one thread without.)
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

namespace nibble {

// How many threads RunOnThreads uses: OMP_NUM_THREADS, else the cores; 1 inside of it.
int ThreadCount();
// Calls work() once on each. It must not throw.
void RunOnThreads(const std::function<void()>& work);
// Ends the calling thread's helpers; its next RunOnThreads starts them anew. For a thread that is
// done: with more helpers alive than there are cores, those of every thread go to sleep at once
// after a piece of work, and waking them takes longer than most pieces.
void EndThreads();

// Calls task(i) for every i in 0 .. count - 1. Each thread takes half of its share of what is left,
// neighbours in rising order, so that none waits long for the last.
template <class Task>
void ParallelTasks(int64_t count, const Task& task) {
  const int64_t threads = ThreadCount();
  if (count <= 1 || threads == 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  std::atomic<int64_t> next = 0;
  RunOnThreads([&] {
    int64_t begin = next;
    while (begin < count) {
      const int64_t taken = std::max<int64_t>((count - begin) / (2 * threads), 1);
      if (!next.compare_exchange_weak(begin, begin + taken)) continue;
      for (int64_t i = begin; i < begin + taken; ++i) task(i);
      begin = next;
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
