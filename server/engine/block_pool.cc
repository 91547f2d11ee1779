#include "server/engine/block_pool.h"

namespace nibble {

BlockPool::BlockPool(int32_t blocks) : total_(blocks) {
  for (int32_t block = blocks - 1; block >= 0; --block) free_.push_back(block);
}

std::optional<std::vector<int32_t>> BlockPool::Take(int64_t count) {
  if (count > static_cast<int64_t>(free_.size())) return std::nullopt;
  std::vector<int32_t> taken(free_.end() - count, free_.end());
  free_.resize(free_.size() - static_cast<size_t>(count));
  return taken;
}

void BlockPool::Return(std::vector<int32_t> blocks) {
  free_.insert(free_.end(), blocks.begin(), blocks.end());
}

}  // namespace nibble
