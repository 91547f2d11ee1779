#include "server/engine/engine.h"

#include <algorithm>
#include <deque>
#include <list>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/engine/block_pool.h"

namespace nibble {
namespace {

// One choice of a request.
struct Sequence {
  uint64_t id = 0;
  RequestId request = 0;
  int32_t choice = 0;
  std::vector<int32_t> tokens;  // prompt, then output
  int64_t computed = 0;         // tokens whose keys and values are in the cache
  std::vector<int32_t> blocks;  // of the whole sequence to come
  absl::Time admitted = absl::InfiniteFuture();
};

struct Request {
  EngineRequest spec;
  EngineCallback callback;
  int32_t choices_left = 0;
  bool paused = false;
  bool cancelled = false;
  int64_t resumes = 0;  // tells a Resume that overtakes its kPause
};

struct Delivery {
  RequestId request = 0;
  EngineEvent event;
};

class LoopEngine : public Engine {
 public:
  LoopEngine(std::unique_ptr<ModelRunner> runner, const Options& options)
      : options_(options), runner_(std::move(runner)), pool_(runner_->kv_pool().blocks) {
    thread_ = std::thread([this] { Loop(); });
  }

  ~LoopEngine() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
      for (auto& [id, request] : requests_) request.cancelled = true;
      ++changes_;
    }
    thread_.join();
  }

  absl::StatusOr<RequestId> Submit(EngineRequest spec, EngineCallback callback) override {
    NIBBLE_RETURN_IF_ERROR(Check(spec));
    absl::MutexLock lock(&mutex_);
    if (static_cast<int64_t>(waiting_.size()) >= options_.max_waiting) {
      return absl::ResourceExhaustedError(StrCat("requests: found ", waiting_.size(),
                                                 " waiting, expected at most ",
                                                 options_.max_waiting, ": try again later"));
    }
    const RequestId id = next_request_++;
    Request& request = requests_[id];
    request.spec = std::move(spec);
    request.callback = std::move(callback);
    request.choices_left = request.spec.n;
    for (int32_t choice = 0; choice < request.spec.n; ++choice) {
      Sequence sequence;
      sequence.id = next_sequence_++;
      sequence.request = id;
      sequence.choice = choice;
      sequence.tokens = request.spec.prompt;
      Enqueue(std::move(sequence), request.spec.priority);
    }
    ++changes_;
    return id;
  }

  void Cancel(RequestId id) override {
    absl::MutexLock lock(&mutex_);
    if (const auto found = requests_.find(id); found != requests_.end()) {
      found->second.cancelled = true;
      ++changes_;
    }
  }

  void Resume(RequestId id) override {
    absl::MutexLock lock(&mutex_);
    if (const auto found = requests_.find(id); found != requests_.end()) {
      found->second.paused = false;
      ++found->second.resumes;
      ++changes_;
    }
  }

  EngineStats stats() const override {
    absl::MutexLock lock(&mutex_);
    EngineStats stats = counted_;
    stats.running = static_cast<int64_t>(running_.size());
    stats.waiting = static_cast<int64_t>(waiting_.size());
    stats.kv_blocks_used = pool_.used();
    stats.kv_blocks_total = pool_.total();
    return stats;
  }

  const ModelRunner& runner() const override { return *runner_; }

 private:
  int64_t BlocksFor(const EngineRequest& spec) const {
    const int64_t tokens = static_cast<int64_t>(spec.prompt.size()) + spec.max_tokens;
    const int64_t size = runner_->kv_pool().block_size;
    return (tokens + size - 1) / size;
  }

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
    if (BlocksFor(spec) > pool_.total()) {
      return absl::ResourceExhaustedError(StrCat("KV cache: found ", pool_.total(),
                                                 " blocks, expected at least ", BlocksFor(spec),
                                                 " for this request"));
    }
    return absl::OkStatus();
  }

  // Behind those of the same priority.
  void Enqueue(Sequence sequence, int32_t priority) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto later =
        std::ranges::find_if(waiting_, [&](const Sequence& other) ABSL_NO_THREAD_SAFETY_ANALYSIS {
          return requests_.at(other.request).spec.priority < priority;
        });
    waiting_.insert(later, std::move(sequence));
  }

  void Loop() {
    while (true) {
      std::vector<Delivery> deliveries;
      StepInputs inputs;
      {
        absl::MutexLock lock(&mutex_);
        const int64_t seen = changes_;
        EndCancelled(deliveries);
        if (stopping_ && requests_.empty()) return;
        Admit();
        inputs = Plan();
        if (inputs.sequences.empty() && deliveries.empty()) {
          AwaitChange(seen);
          continue;
        }
      }
      if (!inputs.sequences.empty()) Advance(inputs, deliveries);
      Deliver(deliveries);
    }
  }

  // Until a Submit, Cancel or Resume, or the next deadline.
  void AwaitChange(int64_t seen) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto changed = [this, seen]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return changes_ != seen; };
    mutex_.AwaitWithDeadline(absl::Condition(&changed), NextDeadline());
  }

  absl::Time NextDeadline() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    absl::Time next = absl::InfiniteFuture();
    for (const auto& [id, request] : requests_) next = std::min(next, request.spec.deadline);
    return next;
  }

  void EndCancelled(std::vector<Delivery>& deliveries) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Time now = absl::Now();
    for (auto* list : {&waiting_, &running_}) {
      for (auto sequence = list->begin(); sequence != list->end();) {
        const Request& request = requests_.at(sequence->request);
        const bool late = request.spec.deadline <= now;
        if (!request.cancelled && !late) {
          ++sequence;
          continue;
        }
        EngineEvent event;
        event.finish = request.cancelled ? FinishReason::kCancelled : FinishReason::kDeadline;
        sequence = End(*list, sequence, std::move(event), deliveries);
      }
    }
  }

  using SequenceList = std::list<Sequence>;

  SequenceList::iterator End(SequenceList& list, SequenceList::iterator sequence, EngineEvent event,
                             std::vector<Delivery>& deliveries)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    pool_.Return(std::move(sequence->blocks));
    event.choice = sequence->choice;
    event.admitted = sequence->admitted;
    deliveries.push_back({sequence->request, std::move(event)});
    return list.erase(sequence);
  }

  // In order, as long as the first one fits: nobody overtakes.
  void Admit() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (!waiting_.empty() && static_cast<int32_t>(running_.size()) < options_.max_sequences) {
      Sequence& first = waiting_.front();
      auto blocks = pool_.Take(BlocksFor(requests_.at(first.request).spec));
      if (!blocks) return;
      first.blocks = *std::move(blocks);
      first.admitted = absl::Now();
      running_.splice(running_.end(), waiting_, waiting_.begin());
    }
  }

  StepInputs Plan() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    StepInputs inputs;
    int64_t budget = options_.max_step_tokens;
    for (const Sequence& sequence : running_) {
      const Request& request = requests_.at(sequence.request);
      if (request.paused || budget == 0) continue;
      const int64_t left = static_cast<int64_t>(sequence.tokens.size()) - sequence.computed;
      const int64_t chunk = std::min(left, budget);
      budget -= chunk;
      inputs.sequences.push_back(InputOf(sequence, request.spec, chunk, chunk == left));
    }
    return inputs;
  }

  SequenceInput InputOf(const Sequence& sequence, const EngineRequest& spec, int64_t chunk,
                        bool whole) const {
    const auto begin = sequence.tokens.begin() + sequence.computed;
    const int64_t size = runner_->kv_pool().block_size;
    const int64_t used = (sequence.computed + chunk + size - 1) / size;
    const int64_t prompt = static_cast<int64_t>(spec.prompt.size());
    const int64_t produced = static_cast<int64_t>(sequence.tokens.size()) - prompt;
    SequenceInput input;
    input.sequence = sequence.id;
    input.tokens.assign(begin, begin + chunk);
    input.position = sequence.computed;
    input.blocks.assign(sequence.blocks.begin(), sequence.blocks.begin() + used);
    input.sample = whole && spec.max_tokens > 0;
    input.sampling = spec.sampling;
    input.sampling.seed += static_cast<uint64_t>(sequence.choice);
    if (produced < spec.min_tokens) input.banned = spec.stop_tokens;
    if (spec.sampling.repetition_penalty != 1 || spec.sampling.presence_penalty != 0 ||
        spec.sampling.frequency_penalty != 0) {
      input.history = sequence.tokens;
      input.history_prompt = prompt;
    }
    input.top_logprobs = spec.top_logprobs;
    input.score_prompt = spec.score_prompt && sequence.choice == 0 && sequence.computed < prompt;
    input.prompt_top_logprobs = spec.prompt_top_logprobs;
    if (!whole) input.score_next = sequence.tokens[sequence.computed + chunk];
    return input;
  }

  void Advance(const StepInputs& inputs, std::vector<Delivery>& deliveries) {
    absl::StatusOr<StepOutputs> outputs = runner_->Step(inputs);
    absl::MutexLock lock(&mutex_);
    ++counted_.steps;
    std::map<uint64_t, size_t> place;
    for (size_t i = 0; i < inputs.sequences.size(); ++i) place[inputs.sequences[i].sequence] = i;
    for (auto sequence = running_.begin(); sequence != running_.end();) {
      const auto found = place.find(sequence->id);
      if (found == place.end()) {
        ++sequence;
      } else if (!outputs.ok()) {
        EngineEvent event;
        event.finish = FinishReason::kError;
        event.status = outputs.status();
        sequence = End(running_, sequence, std::move(event), deliveries);
      } else {
        sequence = Apply(sequence, inputs.sequences[found->second],
                         outputs->sequences[found->second], deliveries);
      }
    }
  }

  SequenceList::iterator Apply(SequenceList::iterator sequence, const SequenceInput& input,
                               SequenceOutput& output, std::vector<Delivery>& deliveries)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const EngineRequest& spec = requests_.at(sequence->request).spec;
    const int64_t chunk = static_cast<int64_t>(input.tokens.size());
    const int64_t prompt = static_cast<int64_t>(spec.prompt.size());
    if (sequence->computed < prompt) counted_.prompt_tokens += chunk;
    sequence->computed += chunk;
    EngineEvent event;
    event.prompt_logprobs = std::move(output.prompt_logprobs);
    if (output.token) {
      const bool stops =
          std::ranges::find(spec.stop_tokens, *output.token) != spec.stop_tokens.end();
      if (stops) {
        event.finish = FinishReason::kStop;
        event.stop_token = output.token;
      } else {
        ++counted_.generated_tokens;
        sequence->tokens.push_back(*output.token);
        event.tokens.push_back(*output.token);
        if (output.logprob) event.logprobs.push_back(*std::move(output.logprob));
        const int64_t produced = static_cast<int64_t>(sequence->tokens.size()) - prompt;
        if (produced == spec.max_tokens) event.finish = FinishReason::kLength;
      }
    } else if (spec.max_tokens == 0 && sequence->computed == prompt) {
      event.finish = FinishReason::kLength;
    }
    if (event.finish != FinishReason::kNone) {
      return End(running_, sequence, std::move(event), deliveries);
    }
    if (!event.tokens.empty() || !event.prompt_logprobs.empty()) {
      event.choice = sequence->choice;
      event.admitted = sequence->admitted;
      deliveries.push_back({sequence->request, std::move(event)});
    }
    return std::next(sequence);
  }

  // Callbacks run without the lock: they may call Cancel and Resume.
  void Deliver(std::vector<Delivery>& deliveries) {
    for (Delivery& delivery : deliveries) {
      EngineCallback callback;
      int64_t resumes = 0;
      {
        absl::MutexLock lock(&mutex_);
        const Request& request = requests_.at(delivery.request);
        callback = request.callback;
        resumes = request.resumes;
      }
      const bool last = delivery.event.finish != FinishReason::kNone;
      const Flow flow = callback(delivery.event);
      absl::MutexLock lock(&mutex_);
      Request& request = requests_.at(delivery.request);
      if (flow == Flow::kPause && request.resumes == resumes) request.paused = true;
      if (last && --request.choices_left == 0) requests_.erase(delivery.request);
    }
  }

  const Options options_;
  const std::unique_ptr<ModelRunner> runner_;
  mutable absl::Mutex mutex_;
  BlockPool pool_ ABSL_GUARDED_BY(mutex_);
  std::map<RequestId, Request> requests_ ABSL_GUARDED_BY(mutex_);
  SequenceList waiting_ ABSL_GUARDED_BY(mutex_);
  SequenceList running_ ABSL_GUARDED_BY(mutex_);
  EngineStats counted_ ABSL_GUARDED_BY(mutex_);
  RequestId next_request_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t next_sequence_ ABSL_GUARDED_BY(mutex_) = 1;
  int64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Engine> Engine::Create(std::unique_ptr<ModelRunner> runner,
                                       const Options& options) {
  return std::make_unique<LoopEngine>(std::move(runner), options);
}

}  // namespace nibble
