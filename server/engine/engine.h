// Requests in, tokens out. Drives one ModelRunner from a thread of its own; knows no RPC.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "server/engine/request.h"
#include "server/engine/scheduler.h"
#include "server/runner/model_runner.h"

namespace nibble {

// What a callback says of its stream: kPause holds this request until Resume.
enum class Flow { kContinue, kPause };
// Called on the engine's thread, one call at a time per request; must not block.
using EngineCallback = std::function<Flow(const EngineEvent&)>;
class Engine {
 public:
  struct Options {
    Scheduler::Options schedule;
    int64_t max_waiting = 4096;  // sequences that may wait for their turn
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
