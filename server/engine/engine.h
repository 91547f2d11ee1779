// Requests in, tokens out. Drives one ModelRunner from a thread of its own; knows no RPC.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/runner/model_runner.h"

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

// What a callback says of its stream: kPause holds this request (its blocks stay) until Resume.
enum class Flow { kContinue, kPause };
// Called on the engine's thread, one call at a time per request; must not block.
using EngineCallback = std::function<Flow(const EngineEvent&)>;
using RequestId = uint64_t;

struct EngineStats {
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t kv_blocks_used = 0;
  int64_t kv_blocks_total = 0;
  int64_t prompt_tokens = 0;  // since start
  int64_t generated_tokens = 0;
  int64_t steps = 0;
};

class Engine {
 public:
  struct Options {
    int64_t max_step_tokens = 2048;  // token budget of a step
    int32_t max_sequences = 256;     // sequences that run at once
    int64_t max_waiting = 4096;      // sequences that may wait for their turn
  };
  static std::unique_ptr<Engine> Create(std::unique_ptr<ModelRunner> runner,
                                        const Options& options);
  virtual ~Engine() = default;

  // INVALID_ARGUMENT when the prompt is empty, beyond the vocabulary, or with max_tokens beyond the
  // context; RESOURCE_EXHAUSTED when it can never fit the KV pool, or when too many wait. Every
  // accepted request gets exactly one finishing event per choice.
  virtual absl::StatusOr<RequestId> Submit(EngineRequest request, EngineCallback callback) = 0;
  // Ends the request within a step, its blocks freed; unknown ids are ignored.
  virtual void Cancel(RequestId id) = 0;
  virtual void Resume(RequestId id) = 0;
  virtual EngineStats stats() const = 0;
  virtual const ModelRunner& runner() const = 0;
};

}  // namespace nibble
