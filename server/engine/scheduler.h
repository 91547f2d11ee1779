// Which sequences take part in the next step, and with which tokens and KV blocks: iteration-level
// batching over a paged cache. No thread, no clock, no model: the engine steps it, and so do tests.
//
// Sequences are ranked by when they arrived, each level of priority being worth a head start; so
// equals are served in order, and everyone comes first in the end. What runs is always a head of
// that order, as long as it fits: nobody overtakes. When blocks run out, those of the last in the
// order are taken and it is computed again later, from what the prefix cache still holds of it. The
// first in the order can take everybody's and any request fits alone, so that there is always
// progress.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/block_pool.h"
#include "server/engine/request.h"
#include "server/engine/sequence.h"
#include "server/runner/model_runner.h"

namespace nibble {

class Scheduler {
 public:
  struct Options {
    int64_t max_step_tokens = 2048;  // token budget of a step, at least max_sequences
    int32_t max_sequences = 256;     // sequences that run at once
    bool prefix_caching = true;
    absl::Duration priority_head_start = absl::Seconds(10);  // of one level of priority
  };
  struct Delivery {
    RequestId request = 0;
    EngineEvent event;
    bool last = false;  // of the request
  };

  Scheduler(const KvPool& pool, const Options& options);

  // `spec` fits the pool (BlocksFor(spec) <= its blocks) and the model.
  void Submit(RequestId id, EngineRequest spec, absl::Time now);
  // Ends it at the next Plan. Unknown ids are ignored, here and below.
  void Cancel(RequestId id);
  // A paused request takes part in no step; it keeps its blocks until another needs them.
  void SetPaused(RequestId id, bool paused);

  // Ends what was cancelled or is late, lets in what fits, and says what to compute: valid until
  // the next call. Empty when nothing can run.
  const StepInputs& Plan(absl::Time now, std::vector<Delivery>& deliveries);
  // What came of the planned step. A status ends all its sequences.
  void Apply(absl::StatusOr<StepOutputs> outputs, std::vector<Delivery>& deliveries);
  // Between steps: the runner has lost what the blocks held. Whoever runs is computed again.
  void LoseCache();

  // KV blocks that all of a request's tokens need.
  int64_t BlocksFor(const EngineRequest& spec) const;
  bool empty() const { return requests_.empty(); }
  int64_t waiting() const { return waiting_count_; }
  absl::Time NextDeadline() const;
  EngineStats stats() const;

 private:
  int64_t BlocksOf(int64_t tokens) const;
  void Enqueue(Sequence& sequence);
  void EndRequest(RequestId id, FinishReason reason, std::vector<Delivery>& deliveries);
  void End(Sequence& sequence, EngineEvent event, std::vector<Delivery>& deliveries);
  void LeaveQueue(Sequence& sequence);

  void Admit(absl::Time now);
  bool TryAdmit(Sequence& sequence, absl::Time now);
  std::vector<BlockPool::Match> FindPrefix(const Sequence& sequence) const;
  std::vector<Sequence*> Victims(const Sequence& sequence) const;
  int64_t BlocksFreedBy(const std::vector<Sequence*>& victims) const;
  bool MakeRoom(const Sequence& sequence, int64_t blocks);
  void Preempt(Sequence& sequence);

  void PlanDecodes(int64_t& budget);
  void PlanPrefills(int64_t& budget);
  void AddInput(Sequence& sequence, int64_t chunk);
  void RememberBlocks(Sequence& sequence);
  void ReleaseHeldChoices(const Request& request);
  void ApplyOne(Sequence& sequence, int64_t chunk, SequenceOutput& output,
                std::vector<Delivery>& deliveries);
  void TakeToken(Sequence& sequence, SequenceOutput& output, EngineEvent& event);

  const Options options_;
  const int64_t block_size_;
  BlockPool pool_;
  absl::flat_hash_map<RequestId, std::unique_ptr<Request>> requests_;
  std::set<Sequence*, ByRank> waiting_;
  std::set<Sequence*, ByRank> running_;
  int64_t waiting_count_ = 0;  // held ones included
  std::vector<RequestId> cancelled_;
  std::set<std::pair<absl::Time, RequestId>> deadlines_;
  StepInputs inputs_;
  std::vector<Sequence*> planned_;  // in the order of inputs_
  EngineStats counted_;
  uint64_t next_sequence_ = 1;
};

}  // namespace nibble
