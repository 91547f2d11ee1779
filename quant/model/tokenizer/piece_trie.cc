#include "quant/model/tokenizer/piece_trie.h"

#include <algorithm>

#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"

namespace nibble {

// Breadth first: a node stands for a range of the sorted pieces, which share their first bytes.
absl::StatusOr<PieceTrie> PieceTrie::Create(
    std::vector<std::pair<std::string_view, int32_t>> pieces) {
  std::sort(pieces.begin(), pieces.end());
  struct Range {
    size_t begin, end, depth;
  };
  PieceTrie trie;
  std::vector<Range> ranges = {{0, pieces.size(), 0}};
  for (size_t node = 0; node < ranges.size(); ++node) {
    auto [begin, end, depth] = ranges[node];
    if (begin < end && pieces[begin].first.size() == depth) {
      trie.nodes_[node].id = pieces[begin].second;
      ++begin;
      if (begin < end && pieces[begin].first.size() == depth) {
        return absl::InvalidArgumentError(
            StrCat("the piece ", Quoted(pieces[begin].first), " is there twice"));
      }
    }
    trie.nodes_[node].children = static_cast<uint32_t>(ranges.size());
    while (begin < end) {
      const char byte = pieces[begin].first[depth];
      const size_t first = begin;
      while (begin < end && pieces[begin].first[depth] == byte) ++begin;
      trie.nodes_.push_back({.byte = static_cast<uint8_t>(byte)});
      ranges.push_back({first, begin, depth + 1});
      ++trie.nodes_[node].count;
    }
  }
  return trie;
}

std::optional<PieceTrie::Node> PieceTrie::Child(Node node, char byte) const {
  const auto begin = nodes_.begin() + nodes_[node].children, end = begin + nodes_[node].count;
  const auto wanted = static_cast<uint8_t>(byte);
  const auto child =
      std::partition_point(begin, end, [&](const Entry& entry) { return entry.byte < wanted; });
  if (child == end || child->byte != wanted) return std::nullopt;
  return static_cast<Node>(child - nodes_.begin());
}

std::optional<int32_t> PieceTrie::Find(std::string_view text) const {
  std::optional<Node> node = kRoot;
  for (const char byte : text) {
    node = Child(*node, byte);
    if (!node.has_value()) return std::nullopt;
  }
  return Id(*node);
}

size_t PieceTrie::LongestPrefix(std::string_view text) const {
  size_t longest = 0;
  Node node = kRoot;
  for (size_t bytes = 0; bytes < text.size();) {
    const std::optional<Node> child = Child(node, text[bytes++]);
    if (!child.has_value()) break;
    node = *child;
    if (Id(node).has_value()) longest = bytes;
  }
  return longest;
}

}  // namespace nibble
