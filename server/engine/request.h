// What the engine is asked for, and what it tells of it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/runner/step.h"

namespace nibble {

enum class FinishReason { kNone, kStop, kLength, kCancelled, kDeadline, kError };

struct EngineRequest {
  std::vector<int32_t> prompt;  // at least one token
  SamplingParams sampling;
  int64_t max_tokens = 0;  // 0: score the prompt only
  int64_t min_tokens = 0;
  std::vector<int32_t> stop_tokens;  // ids that end the sequence (not emitted)
  int32_t n = 1;                     // choices that share the prompt
  int32_t top_logprobs = -1;         // -1: none
  bool score_prompt = false;
  int32_t prompt_top_logprobs = 0;
  int32_t priority = 0;  // higher first
  absl::Time deadline = absl::InfiniteFuture();
};

// One thing that happened to one choice of a request. The last of a choice has a finish reason.
struct EngineEvent {
  int32_t choice = 0;
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs;         // one per token, if asked for
  std::vector<TokenLogprob> prompt_logprobs;  // choice 0, as the prompt is scored
  FinishReason finish = FinishReason::kNone;
  std::optional<int32_t> stop_token;  // which one ended it, for kStop
  absl::Status status;                // why, for kError
  int64_t cached_prompt_tokens = 0;
  absl::Time admitted = absl::InfiniteFuture();  // when the choice was taken up, if it was
};

using RequestId = uint64_t;

struct EngineStats {
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t kv_blocks_used = 0;  // held by sequences
  int64_t kv_blocks_total = 0;
  // Since start:
  int64_t prompt_tokens = 0;  // computed; again where a sequence was preempted
  int64_t generated_tokens = 0;
  int64_t cached_tokens = 0;  // found in the prefix cache instead of computed
  int64_t preemptions = 0;
  int64_t steps = 0;

  // Of several engines together.
  EngineStats& operator+=(const EngineStats& other);
};

}  // namespace nibble
