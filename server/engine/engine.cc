#include "server/engine/engine.h"

#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/engine/scheduler.h"

namespace nibble {
namespace {

// Who is told of a request.
struct Stream {
  explicit Stream(EngineCallback told) : callback(std::move(told)) {}
  EngineCallback callback;
  int64_t resumes = 0;  // tells a Resume that overtakes its kPause
};

class LoopEngine : public Engine {
 public:
  LoopEngine(std::unique_ptr<ModelRunner> runner, const Options& options)
      : options_(options),
        runner_(std::move(runner)),
        scheduler_(runner_->kv_pool(), options.schedule),
        kv_epoch_(runner_->kv_epoch()) {
    thread_ = std::thread([this] { Loop(); });
  }

  ~LoopEngine() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
      for (const auto& [id, stream] : streams_) scheduler_.Cancel(id);
      ++changes_;
    }
    thread_.join();
  }

  absl::StatusOr<RequestId> Submit(EngineRequest spec, EngineCallback callback) override {
    NIBBLE_RETURN_IF_ERROR(Check(spec));
    absl::MutexLock lock(&mutex_);
    if (scheduler_.waiting() >= options_.max_waiting) {
      return absl::ResourceExhaustedError(StrCat("requests: found ", scheduler_.waiting(),
                                                 " waiting, expected at most ",
                                                 options_.max_waiting, ": try again later"));
    }
    const RequestId id = next_request_++;
    streams_.emplace(id, std::make_unique<Stream>(std::move(callback)));
    scheduler_.Submit(id, std::move(spec), absl::Now());
    ++changes_;
    return id;
  }

  void Cancel(RequestId id) override {
    absl::MutexLock lock(&mutex_);
    scheduler_.Cancel(id);
    ++changes_;
  }

  void Resume(RequestId id) override {
    absl::MutexLock lock(&mutex_);
    if (const auto found = streams_.find(id); found != streams_.end()) {
      ++found->second->resumes;
      scheduler_.SetPaused(id, false);
      ++changes_;
    }
  }

  EngineStats stats() const override {
    absl::MutexLock lock(&mutex_);
    return scheduler_.stats();
  }

  const ModelRunner& runner() const override { return *runner_; }

 private:
  absl::Status Check(const EngineRequest& spec) const {
    const int64_t prompt = static_cast<int64_t>(spec.prompt.size());
    if (prompt == 0)
      return absl::InvalidArgumentError("prompt: found 0 tokens, expected 1 or more");
    for (const int32_t token : spec.prompt) {
      if (token < 0 || token >= runner_->vocab_size()) {
        return absl::InvalidArgumentError(StrCat("prompt: found token id ", token,
                                                 ", expected 0 to ", runner_->vocab_size() - 1));
      }
    }
    if (spec.max_tokens < 0 || spec.n < 1) {
      return absl::InvalidArgumentError(StrCat("max_tokens, n: found ", spec.max_tokens, ", ",
                                               spec.n, ", expected 0 or more, 1 or more"));
    }
    if (prompt + spec.max_tokens > runner_->context()) {
      return absl::InvalidArgumentError(
          StrCat("prompt: found ", prompt, " tokens with max_tokens ", spec.max_tokens,
                 ", expected at most ", runner_->context(), " together, the model's context"));
    }
    const int64_t needed = (prompt + spec.max_tokens + runner_->kv_pool().block_size - 1) /
                           runner_->kv_pool().block_size;
    if (needed > runner_->kv_pool().blocks) {
      return absl::ResourceExhaustedError(StrCat("KV cache: found ", runner_->kv_pool().blocks,
                                                 " blocks, expected at least ", needed,
                                                 " for this request"));
    }
    return absl::OkStatus();
  }

  void Loop() {
    std::vector<Scheduler::Delivery> deliveries;
    while (true) {
      deliveries.clear();
      const int64_t epoch =
          runner_->kv_epoch();  // without the lock: it may wait for a dead process
      const StepInputs* inputs = nullptr;
      {
        absl::MutexLock lock(&mutex_);
        if (std::exchange(kv_epoch_, epoch) != epoch) scheduler_.LoseCache();
        const int64_t seen = changes_;
        inputs = &scheduler_.Plan(absl::Now(), deliveries);
        if (stopping_ && scheduler_.empty() && deliveries.empty()) return;
        if (inputs->sequences.empty() && deliveries.empty()) {
          AwaitChange(seen);
          continue;
        }
      }
      if (!inputs->sequences.empty()) {
        absl::StatusOr<StepOutputs> outputs = runner_->Step(*inputs);
        absl::MutexLock lock(&mutex_);
        scheduler_.Apply(std::move(outputs), deliveries);
      }
      Deliver(deliveries);
    }
  }

  // Until a Submit, Cancel or Resume, or the next deadline.
  void AwaitChange(int64_t seen) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto changed = [this, seen]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return changes_ != seen; };
    mutex_.AwaitWithDeadline(absl::Condition(&changed), scheduler_.NextDeadline());
  }

  // Callbacks run without the lock: they may call Cancel and Resume.
  void Deliver(const std::vector<Scheduler::Delivery>& deliveries) {
    struct Telling {
      Stream* stream;
      int64_t resumes;
    };
    std::vector<Telling> tellings;
    {
      absl::MutexLock lock(&mutex_);
      for (const Scheduler::Delivery& delivery : deliveries) {
        Stream* stream = streams_.at(delivery.request).get();
        tellings.push_back({stream, stream->resumes});
      }
    }
    std::vector<Flow> flows;
    for (size_t i = 0; i < deliveries.size(); ++i) {
      flows.push_back(tellings[i].stream->callback(deliveries[i].event));
    }
    absl::MutexLock lock(&mutex_);
    for (size_t i = 0; i < deliveries.size(); ++i) {
      const bool resumed = tellings[i].stream->resumes != tellings[i].resumes;
      if (flows[i] == Flow::kPause && !resumed) scheduler_.SetPaused(deliveries[i].request, true);
    }
    for (const Scheduler::Delivery& delivery : deliveries) {
      if (delivery.last) streams_.erase(delivery.request);
    }
  }

  const Options options_;
  const std::unique_ptr<ModelRunner> runner_;
  mutable absl::Mutex mutex_;
  Scheduler scheduler_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<RequestId, std::unique_ptr<Stream>> streams_ ABSL_GUARDED_BY(mutex_);
  RequestId next_request_ ABSL_GUARDED_BY(mutex_) = 1;
  int64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t kv_epoch_;  // of the runner's cache that the scheduler knows
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Engine> Engine::Create(std::unique_ptr<ModelRunner> runner,
                                       const Options& options) {
  return std::make_unique<LoopEngine>(std::move(runner), options);
}

}  // namespace nibble
