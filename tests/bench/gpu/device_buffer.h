// Device memory of random bits for benches.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/bench/gpu/graph_timer.h"

namespace nibble {

// Freed at the end.
class Buffer {
 public:
  // Words (random & keep) | set; as they are: finite as bf16 and as E4M3.
  explicit Buffer(size_t bytes, uint32_t keep = 0xbf3fbf3fu, uint32_t set = 0x20002000u) {
    OrDie(cudaMalloc(&data_, bytes));
    std::vector<uint32_t> block(std::min<size_t>(bytes, 1 << 22) / 4 + 1);
    std::mt19937 random(1);
    for (uint32_t& word : block) word = (static_cast<uint32_t>(random()) & keep) | set;
    size_t filled = std::min(bytes, block.size() * 4);
    OrDie(cudaMemcpy(data_, block.data(), filled, cudaMemcpyHostToDevice));
    while (filled < bytes) {
      const size_t more = std::min(filled, bytes - filled);
      OrDie(cudaMemcpy(static_cast<char*>(data_) + filled, data_, more, cudaMemcpyDeviceToDevice));
      filled += more;
    }
  }
  explicit Buffer(const std::vector<int32_t>& values) : Buffer(values.size() * 4) {
    OrDie(cudaMemcpy(data_, values.data(), values.size() * 4, cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// Copies of something of `bytes` bytes that are read one after the other and lie, together, several
// times over in the second-level cache's 50 MB: each is cold when its turn comes.
inline int ColdCopies(size_t bytes) {
  constexpr size_t kColdBytes = 200 << 20;
  return static_cast<int>(std::clamp<size_t>((kColdBytes + bytes - 1) / bytes, 2, 24));
}
// Launches of a graph that reads every copy equally often.
inline int ColdLaunches(int copies) { return (24 + copies - 1) / copies * copies; }

}  // namespace nibble
