// The pieces of a vocabulary by their bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble {

// Immutable: safe to share between threads. 12 bytes a node, a node a byte at most.
class PieceTrie {
 public:
  using Node = uint32_t;
  static constexpr Node kRoot = 0;

  PieceTrie() : nodes_(1) {}
  // Texts, which are not empty, and their ids. INVALID_ARGUMENT when a text is there twice.
  static absl::StatusOr<PieceTrie> Create(std::vector<std::pair<std::string_view, int32_t>> pieces);

  // Where one more byte leads.
  std::optional<Node> Child(Node node, char byte) const;
  // Of the piece that ends here.
  std::optional<int32_t> Id(Node node) const {
    return nodes_[node].id < 0 ? std::nullopt : std::optional(nodes_[node].id);
  }

  std::optional<int32_t> Find(std::string_view text) const;
  // The bytes of the longest piece that `text` begins with; 0: none.
  size_t LongestPrefix(std::string_view text) const;

 private:
  struct Entry {
    uint32_t children = 0;  // the first one; they lie together, sorted
    uint16_t count = 0;     // of them
    uint8_t byte = 0;       // that leads here
    int32_t id = -1;        // none: -1
  };
  std::vector<Entry> nodes_;
};

}  // namespace nibble
