// The KV blocks of a runner: who holds them, and which prefixes they remember.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "absl/types/span.h"

namespace nibble {

// Names a cached prefix that ends at a block's edge: equal tokens from position 0 have equal ids.
// Never used twice.
using PrefixId = uint64_t;
inline constexpr PrefixId kEmptyPrefix = 0;

// Reference-counted blocks with automatic prefix caching. A full block may be remembered under the
// prefix before it and its own tokens; it keeps its contents after its last holder has gone, until
// it is the least recently used one and a new block is wanted. Not thread-safe.
class BlockPool {
 public:
  explicit BlockPool(int32_t blocks);

  // Appends blocks that nobody else holds, with one reference each. `count` is at most available().
  void Take(int64_t count, std::vector<int32_t>& blocks);
  // Gives one reference of each block back. In the order of a sequence: its last blocks are
  // forgotten first, so that a prefix is not lost before what continues it.
  void Release(absl::Span<const int32_t> blocks);

  struct Match {
    PrefixId prefix = kEmptyPrefix;
    int32_t block = 0;
  };
  // The remembered block that continues `prefix` by a block's `tokens`.
  std::optional<Match> Find(PrefixId prefix, absl::Span<const int32_t> tokens) const;
  // One more reference to a block that Find gave.
  void Share(int32_t block);
  // Remembers `block`, which the caller holds and has filled, as `prefix` continued by `tokens`;
  // returns the id of the longer prefix. Where another block stands for it already, that one stays.
  PrefixId Remember(int32_t block, PrefixId prefix, absl::Span<const int32_t> tokens);

  // Forgets what every block remembers, since none holds it any more.
  void ForgetAll();

  // Blocks that Take could give: free, or remembered and held by nobody.
  int64_t available() const { return static_cast<int64_t>(free_.size() + idle_.size()); }
  int64_t total() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t used() const { return total() - available(); }
  int32_t holders(int32_t block) const { return blocks_[block].holders; }

 private:
  struct Key {
    PrefixId prefix;
    std::vector<int32_t> tokens;
  };
  struct KeyView {
    PrefixId prefix;
    absl::Span<const int32_t> tokens;
  };
  struct KeyHash {
    using is_transparent = void;
    size_t operator()(const Key& key) const { return (*this)(KeyView{key.prefix, key.tokens}); }
    size_t operator()(const KeyView& key) const { return absl::HashOf(key.prefix, key.tokens); }
  };
  struct KeyEqual {
    using is_transparent = void;
    static KeyView View(const Key& key) { return {key.prefix, key.tokens}; }
    static KeyView View(const KeyView& key) { return key; }
    template <class A, class B>
    bool operator()(const A& a, const B& b) const {
      return View(a).prefix == View(b).prefix && View(a).tokens == View(b).tokens;
    }
  };
  struct Block {
    int32_t holders = 0;
    bool remembered = false;
    Key key;                            // when remembered
    std::list<int32_t>::iterator idle;  // when remembered and held by nobody
  };

  int32_t TakeOne();

  std::vector<Block> blocks_;
  std::vector<int32_t> free_;
  std::list<int32_t> idle_;  // the least recently used first
  absl::flat_hash_map<Key, Match, KeyHash, KeyEqual> remembered_;
  PrefixId next_prefix_ = kEmptyPrefix + 1;
};

}  // namespace nibble
