// The KV blocks of a runner: which are free.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace nibble {

// Not thread-safe: the engine's lock guards it.
class BlockPool {
 public:
  explicit BlockPool(int32_t blocks);
  // Nothing when fewer are free.
  std::optional<std::vector<int32_t>> Take(int64_t count);
  void Return(std::vector<int32_t> blocks);
  int64_t used() const { return total_ - static_cast<int64_t>(free_.size()); }
  int64_t total() const { return total_; }

 private:
  int64_t total_;
  std::vector<int32_t> free_;
};

}  // namespace nibble
