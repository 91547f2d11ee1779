// One choice of a request on its way through the engine. Private to engine/.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "server/engine/block_pool.h"
#include "server/engine/request.h"

namespace nibble {

struct Request;

struct Sequence {
  enum class State {
    kHeld,     // waits for choice 0 to fill the prompt's blocks, which it then shares
    kWaiting,  // holds no blocks
    kRunning,  // holds the blocks of its tokens so far
    kEnded,
  };

  uint64_t id = 0;  // in order of arrival
  Request* request = nullptr;
  int32_t choice = 0;
  State state = State::kHeld;
  absl::Time rank;              // when it arrived, less the head start of its priority
  std::vector<int32_t> tokens;  // prompt, then output
  int64_t computed = 0;         // tokens whose keys and values are in the cache
  std::vector<int32_t> blocks;
  int64_t remembered_blocks = 0;   // of `blocks`, from the front
  PrefixId prefix = kEmptyPrefix;  // that they stand for
  int64_t scored = 0;              // prompt tokens whose log-probability has been told
  int64_t cached_prompt_tokens = 0;
  absl::Time admitted = absl::InfiniteFuture();  // for the first time

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
};

struct Request {
  RequestId id = 0;
  EngineRequest spec;
  std::vector<std::unique_ptr<Sequence>> choices;
  int32_t choices_left = 0;
  bool paused = false;

  int64_t prompt_size() const { return static_cast<int64_t>(spec.prompt.size()); }
};

// Who comes first, of the waiting and of the running alike.
struct ByRank {
  bool operator()(const Sequence* a, const Sequence* b) const {
    return a->rank != b->rank ? a->rank < b->rank : a->id < b->id;
  }
};

}  // namespace nibble
