// A model whose next token is a hash of the whole sequence, kept in the KV blocks it is given:
// wrong blocks, positions or sharing give wrong tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "server/runner/model_runner.h"

namespace nibble {

class FakeRunner : public ModelRunner {
 public:
  static constexpr int32_t kVocab = 1000;
  explicit FakeRunner(KvPool pool) : pool_(pool), cache_(pool.blocks * pool.block_size, -1) {}

  KvPool kv_pool() const override { return pool_; }
  int64_t context() const override { return 128; }
  int32_t vocab_size() const override { return kVocab; }
  int64_t weight_bytes() const override { return 0; }

  int64_t kv_epoch() override { return epoch_; }

  absl::StatusOr<StepOutputs> Step(const StepInputs& inputs) override {
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(
          +[](int64_t* steps) { return *steps != 0; }, &steps_allowed_));
      if (steps_allowed_ > 0) --steps_allowed_;
      if (fail_next_) {
        fail_next_ = false;
        return absl::InternalError("the device is gone");
      }
      if (lose_next_) {
        lose_next_ = false;
        LoseCache();
        return absl::UnavailableError("the process is gone");
      }
    }
    StepOutputs outputs;
    for (const SequenceInput& input : inputs.sequences) outputs.sequences.push_back(Run(input));
    return outputs;
  }

  // Steps wait until allowed; -1: any number.
  void Allow(int64_t steps) {
    absl::MutexLock lock(&mutex_);
    steps_allowed_ = steps;
  }
  void FailNext() {
    absl::MutexLock lock(&mutex_);
    fail_next_ = true;
  }

  // The next step fails and the cache is lost with it.
  void LoseNext() {
    absl::MutexLock lock(&mutex_);
    lose_next_ = true;
  }
  // Between steps, by who steps.
  void LoseCache() {
    std::ranges::fill(cache_, -1);
    ++epoch_;
  }

  static int32_t Next(const std::vector<int32_t>& tokens) {
    uint64_t hash = 1469598103934665603u;
    for (const int32_t token : tokens)
      hash = (hash ^ static_cast<uint64_t>(token)) * 1099511628211u;
    return static_cast<int32_t>((hash >> 17) % kVocab);
  }

 private:
  int32_t& Slot(const SequenceInput& input, int64_t position) {
    return cache_.at(input.blocks.at(position / pool_.block_size) * pool_.block_size +
                     position % pool_.block_size);
  }

  SequenceOutput Run(const SequenceInput& input) {
    for (size_t i = 0; i < input.tokens.size(); ++i) {
      Slot(input, input.position + static_cast<int64_t>(i)) = input.tokens[i];
    }
    SequenceOutput output;
    output.sequence = input.sequence;
    std::vector<int32_t> seen;
    const int64_t end = input.position + static_cast<int64_t>(input.tokens.size());
    for (int64_t i = 0; i < end; ++i) seen.push_back(Slot(input, i));
    if (input.sample) output.token = Next(seen);
    if (input.score_prompt) {
      for (size_t i = 1; i < input.tokens.size(); ++i)
        output.prompt_logprobs.push_back({input.tokens[i]});
      if (input.score_next) output.prompt_logprobs.push_back({*input.score_next});
    }
    return output;
  }

  const KvPool pool_;
  std::vector<int32_t> cache_;  // the token at each place
  absl::Mutex mutex_;
  int64_t steps_allowed_ = -1;
  bool fail_next_ = false;
  bool lose_next_ = false;
  int64_t epoch_ = 0;
};

}  // namespace nibble
