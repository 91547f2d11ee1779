#include "tests/bench/load/load_run.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

constexpr absl::Duration kTellEvery = absl::Seconds(1);
// For requests to end after their deadline.
constexpr absl::Duration kGrace = absl::Seconds(30);

// Shared with the target's callbacks, which may come after a load that was given up.
struct State {
  explicit State(size_t requests) : traces(requests) {}

  std::vector<RequestTrace> traces;  // each of them its request's own until that has ended
  std::atomic<int64_t> tokens = 0;
  absl::Mutex mutex;
  int64_t started ABSL_GUARDED_BY(mutex) = 0;
  int64_t ended ABSL_GUARDED_BY(mutex) = 0;
  absl::Status error ABSL_GUARDED_BY(mutex);
};

class Load {
 public:
  Load(LoadTarget& target, const std::vector<LoadRequest>& requests, const LoadSchedule& schedule,
       const std::function<void(const LoadProgress&)>& tell)
      : target_(target),
        requests_(requests),
        schedule_(schedule),
        tell_(tell),
        begin_(absl::Now()),
        end_(begin_ + schedule.limit),
        next_tell_(begin_ + kTellEvery),
        state_(std::make_shared<State>(requests.size())) {}

  absl::StatusOr<std::vector<RequestTrace>> Run() {
    for (size_t i = 0; i < requests_.size(); ++i) {
      const absl::Time due = AwaitTurn(i);
      if (Failed() || absl::Now() >= end_) break;
      Start(i, due);
    }
    Await(end_ + kGrace, [this] { return state_->ended == state_->started; });
    absl::MutexLock lock(&state_->mutex);
    if (!state_->error.ok()) return state_->error;
    const auto all = static_cast<int64_t>(requests_.size());
    if (state_->ended < all) {
      return absl::DeadlineExceededError(StrCat("load: found ", state_->ended,
                                                " requests at an end, expected ", all, " after ",
                                                absl::FormatDuration(schedule_.limit)));
    }
    return std::move(state_->traces);
  }

 private:
  // When request i is to begin, which has come.
  absl::Time AwaitTurn(size_t i) {
    if (schedule_.arrivals.empty()) {
      Await(end_, [this] {
        return !state_->error.ok() || state_->started - state_->ended < schedule_.concurrency;
      });
      return absl::Now();
    }
    const absl::Time due = begin_ + schedule_.arrivals[i];
    Await(std::min(due, end_), [this] { return !state_->error.ok(); });
    return due;
  }

  void Start(size_t i, absl::Time due) {
    {
      absl::MutexLock lock(&state_->mutex);
      ++state_->started;
    }
    state_->traces[i].due = due;
    state_->traces[i].tokens.reserve(requests_[i].max_tokens);
    target_.Start(
        requests_[i], end_,
        [state = state_, i](int64_t count) {
          state->tokens += count;
          state->traces[i].tokens.insert(state->traces[i].tokens.end(), count, absl::Now());
        },
        [state = state_](const absl::Status& status) {
          absl::MutexLock lock(&state->mutex);
          ++state->ended;
          state->error.Update(status);
        });
  }

  bool Failed() {
    absl::MutexLock lock(&state_->mutex);
    return !state_->error.ok();
  }

  // Until then, or until `done` says so, under the lock.
  template <class Done>
  void Await(absl::Time until, const Done& done) {
    const absl::Condition condition(&done);
    while (true) {
      LoadProgress progress;
      {
        absl::MutexLock lock(&state_->mutex);
        if (state_->mutex.AwaitWithDeadline(condition, std::min(until, next_tell_))) return;
        progress = {.ended = state_->ended,
                    .requests = static_cast<int64_t>(requests_.size()),
                    .tokens = state_->tokens,
                    .elapsed = absl::Now() - begin_};
      }
      if (absl::Now() >= until) return;
      tell_(progress);
      next_tell_ = absl::Now() + kTellEvery;
    }
  }

  LoadTarget& target_;
  const std::vector<LoadRequest>& requests_;
  const LoadSchedule& schedule_;
  const std::function<void(const LoadProgress&)>& tell_;
  const absl::Time begin_;
  const absl::Time end_;
  absl::Time next_tell_;
  const std::shared_ptr<State> state_;
};

}  // namespace

absl::StatusOr<std::vector<RequestTrace>> RunLoad(
    LoadTarget& target, const std::vector<LoadRequest>& requests, const LoadSchedule& schedule,
    const std::function<void(const LoadProgress&)>& tell) {
  return Load(target, requests, schedule, tell).Run();
}

}  // namespace nibble
