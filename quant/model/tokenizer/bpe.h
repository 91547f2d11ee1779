// Byte-pair encoding of one pre-token (Sennrich et al., arXiv 1508.07909), on bytes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace nibble {

// Immutable: safe to share between threads.
class BpeModel {
 public:
  struct Options {
    // Token bytes and their ids, and pairs of tokens in the order in which they merge.
    absl::flat_hash_map<std::string, int32_t> vocab;
    std::vector<std::pair<std::string, std::string>> merges;
    bool ignore_merges = false;         // a pre-token that is a token is taken whole
    std::optional<int32_t> unknown_id;  // for a byte without a token; absent: the byte is dropped
    bool fuse_unknown = false;          // one id for a run of unknown bytes
  };
  // INVALID_ARGUMENT when a merge needs a token that the vocabulary lacks.
  static absl::StatusOr<BpeModel> Create(Options options);

  // Appends the ids of a pre-token: the pair of lowest rank first, the leftmost of equal ones.
  // O(n log n) for n bytes.
  void Encode(std::string_view word, std::vector<int32_t>& ids) const;

  std::optional<int32_t> Find(std::string_view bytes) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t id;
  };
  struct Symbol;

  BpeModel() = default;
  std::vector<Symbol> Symbols(std::string_view word) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;
  void MergeAll(std::vector<Symbol>& symbols) const;

  absl::flat_hash_map<std::string, int32_t> vocab_;
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by both ids
  std::array<int32_t, 256> byte_ids_{};          // -1: no token
  bool ignore_merges_ = false;
  std::optional<int32_t> unknown_id_;
  bool fuse_unknown_ = false;
};

}  // namespace nibble
