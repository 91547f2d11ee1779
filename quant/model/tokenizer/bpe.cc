#include "quant/model/tokenizer/bpe.h"

#include <algorithm>
#include <queue>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"

namespace nibble {
namespace {

constexpr int32_t kNone = -1;

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

// A pair that could merge when it was found; `id` tells whether it still can.
struct Candidate {
  int32_t rank;
  int32_t position;
  int32_t id;
  bool operator>(const Candidate& other) const {
    return std::pair(rank, position) > std::pair(other.rank, other.position);
  }
};

}  // namespace

// A node of the doubly linked list that a pre-token is; `id` is kNone once merged into its left.
struct BpeModel::Symbol {
  int32_t id;
  int32_t previous;
  int32_t next;
};

absl::StatusOr<BpeModel> BpeModel::Create(Options options) {
  BpeModel model;
  model.vocab_ = std::move(options.vocab);
  model.ignore_merges_ = options.ignore_merges;
  model.unknown_id_ = options.unknown_id;
  model.fuse_unknown_ = options.fuse_unknown;
  for (int byte = 0; byte < 256; ++byte) {
    model.byte_ids_[byte] = model.Find(std::string(1, static_cast<char>(byte))).value_or(kNone);
  }
  model.merges_.reserve(options.merges.size());
  for (size_t rank = 0; rank < options.merges.size(); ++rank) {
    const auto& [left, right] = options.merges[rank];
    const auto left_id = model.Find(left), right_id = model.Find(right);
    const auto merged_id = model.Find(left + right);
    if (!left_id || !right_id || !merged_id) {
      return absl::InvalidArgumentError(
          StrCat("merge ", rank, ": found ", Quoted(left), " and ", Quoted(right),
                 ", expected that the vocabulary has both and their concatenation"));
    }
    model.merges_[PairKey(*left_id, *right_id)] = {static_cast<int32_t>(rank), *merged_id};
  }
  return model;
}

std::optional<int32_t> BpeModel::Find(std::string_view bytes) const {
  const auto entry = vocab_.find(ToAbsl(bytes));
  return entry == vocab_.end() ? std::nullopt : std::optional(entry->second);
}

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const auto entry = merges_.find(PairKey(left, right));
  return entry == merges_.end() ? nullptr : &entry->second;
}

void BpeModel::Encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    if (const auto id = Find(word)) {
      ids.push_back(*id);
      return;
    }
  }
  std::vector<Symbol> symbols = Symbols(word);
  MergeAll(symbols);
  for (const Symbol& symbol : symbols) {
    if (symbol.id != kNone) ids.push_back(symbol.id);
  }
}

std::vector<BpeModel::Symbol> BpeModel::Symbols(std::string_view word) const {
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  bool after_unknown = false;
  for (const char byte : word) {
    int32_t id = byte_ids_[static_cast<uint8_t>(byte)];
    const bool unknown = id == kNone;
    if (unknown) {
      if (!unknown_id_.has_value() || (fuse_unknown_ && after_unknown)) continue;
      id = *unknown_id_;
    }
    after_unknown = unknown;
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, index - 1, index + 1});
  }
  if (!symbols.empty()) symbols.back().next = kNone;
  return symbols;
}

void BpeModel::MergeAll(std::vector<Symbol>& symbols) const {
  std::vector<Candidate> found;
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) {
    if (const Merge* merge = FindMerge(symbols[i].id, symbols[i + 1].id)) {
      found.push_back({merge->rank, i, merge->id});
    }
  }
  std::priority_queue queue(std::greater<Candidate>(), std::move(found));
  const auto offer = [&](int32_t left) {
    if (left == kNone || symbols[left].next == kNone) return;
    if (const Merge* merge = FindMerge(symbols[left].id, symbols[symbols[left].next].id)) {
      queue.push({merge->rank, left, merge->id});
    }
  };
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.position];
    if (left.id == kNone || left.next == kNone) continue;
    Symbol& right = symbols[left.next];
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->id != best.id) continue;
    left.id = merge->id;
    left.next = right.next;
    right.id = kNone;
    if (left.next != kNone) symbols[left.next].previous = best.position;
    offer(left.previous);
    offer(best.position);
  }
}

}  // namespace nibble
