#include "server/engine/block_pool.h"

namespace nibble {

BlockPool::BlockPool(int32_t blocks) : blocks_(blocks) {
  for (int32_t block = blocks - 1; block >= 0; --block) free_.push_back(block);
}

void BlockPool::Take(int64_t count, std::vector<int32_t>& blocks) {
  for (int64_t i = 0; i < count; ++i) blocks.push_back(TakeOne());
}

int32_t BlockPool::TakeOne() {
  int32_t taken = 0;
  if (!free_.empty()) {
    taken = free_.back();
    free_.pop_back();
  } else {
    taken = idle_.front();
    idle_.pop_front();
    Block& block = blocks_[taken];
    remembered_.erase(block.key);
    block.remembered = false;
  }
  blocks_[taken].holders = 1;
  return taken;
}

void BlockPool::Release(absl::Span<const int32_t> blocks) {
  for (auto released = blocks.rbegin(); released != blocks.rend(); ++released) {
    Block& block = blocks_[*released];
    if (--block.holders > 0) continue;
    if (block.remembered) {
      block.idle = idle_.insert(idle_.end(), *released);
    } else {
      free_.push_back(*released);
    }
  }
}

std::optional<BlockPool::Match> BlockPool::Find(PrefixId prefix,
                                                absl::Span<const int32_t> tokens) const {
  const auto found = remembered_.find(KeyView{prefix, tokens});
  if (found == remembered_.end()) return std::nullopt;
  return found->second;
}

void BlockPool::Share(int32_t block) {
  if (blocks_[block].holders++ == 0) idle_.erase(blocks_[block].idle);
}

PrefixId BlockPool::Remember(int32_t block, PrefixId prefix, absl::Span<const int32_t> tokens) {
  if (const std::optional<Match> known = Find(prefix, tokens)) return known->prefix;
  const PrefixId longer = next_prefix_++;
  blocks_[block].key = {prefix, {tokens.begin(), tokens.end()}};
  blocks_[block].remembered = true;
  remembered_[blocks_[block].key] = {longer, block};
  return longer;
}

void BlockPool::ForgetAll() {
  remembered_.clear();
  for (Block& block : blocks_) block.remembered = false;
  free_.insert(free_.end(), idle_.begin(), idle_.end());
  idle_.clear();
}

}  // namespace nibble
