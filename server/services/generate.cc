#include "server/services/generate.h"

#include <grpcpp/server_context.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/ops/grpc_status.h"
#include "server/services/prompt.h"
#include "server/services/stop_strings.h"
#include "server/services/stream_writer.h"

namespace nibble {
namespace {

// Messages that may wait for a slow reader before its request is paused.
constexpr size_t kMostWaiting = 64;

std::string MakeRequestId() {
  std::random_device random;
  return absl::StrFormat("request-%08x%08x", random(), random());
}

// Tokens that one sequence may hold.
int64_t LongestSequence(const LoadedModel& model) {
  const KvPool pool = model.engine->runner().kv_pool();
  return std::min(model.config.context, int64_t{pool.blocks} * pool.block_size);
}

// One choice's way from tokens to text. Used on the engine's thread only.
struct ChoiceText {
  explicit ChoiceText(const v1::GenerateRequest& request)
      : stops({request.stop().begin(), request.stop().end()}) {}
  StreamDecoder decoder;
  StopStrings stops;
  int64_t tokens = 0;
  bool ended = false;  // by a stop string, before the engine knew
};

class Generation : public StreamWriter<v1::GenerateResponse> {
 public:
  Generation(grpc::CallbackServerContext* context, const v1::GenerateRequest* request,
             Registry& registry, Metrics& metrics)
      : context_(context),
        request_(*request),
        registry_(registry),
        metrics_(metrics),
        timer_(metrics, "Generate") {}

  // On `tasks`; the model comes at once or after it is loaded, and the rest goes on there again.
  void Begin(TaskThread& tasks) {
    if (const absl::Status status = CheckGenerate(request_); !status.ok()) {
      return End(timer_.Done(ToGrpcStatus(status)));
    }
    registry_.Acquire(request_.model(), std::nullopt, Keep::kStay,
                      [this, &tasks](absl::StatusOr<ModelHandle> model) {
                        tasks.Run([this, model = std::move(model)] { Start(model); });
                      });
  }

 protected:
  void OnAbort() override {
    absl::MutexLock lock(&mutex_);
    aborted_ = true;
    if (id_) model_->engine->Cancel(*id_);
  }
  void OnDrained() override {
    absl::MutexLock lock(&mutex_);
    if (id_) model_->engine->Resume(*id_);
  }

 private:
  void Start(const absl::StatusOr<ModelHandle>& model) {
    const absl::Status status = model.ok() ? Submit(*model) : model.status();
    if (!status.ok()) End(timer_.Done(ToGrpcStatus(status)));
  }

  absl::Status Submit(const ModelHandle& model) {
    NIBBLE_ASSIGN_OR_RETURN(EngineRequest spec, MakeSpec(*model));
    prompt_tokens_ = static_cast<int64_t>(spec.prompt.size());
    for (int32_t i = 0; i < spec.n; ++i) choices_.emplace_back(request_);
    choices_left_ = spec.n;
    Push(StartMessage(spec));
    absl::MutexLock lock(&mutex_);
    if (aborted_) return absl::CancelledError("cancelled by the client");
    model_ = model;
    NIBBLE_ASSIGN_OR_RETURN(
        id_, model_->engine->Submit(std::move(spec),
                                    [this](const EngineEvent& event) { return OnEvent(event); }));
    return absl::OkStatus();
  }

  v1::GenerateResponse StartMessage(const EngineRequest& spec) const {
    v1::GenerateResponse message;
    message.mutable_start()->set_request_id(request_.request_id().empty() ? MakeRequestId()
                                                                          : request_.request_id());
    message.mutable_start()->set_version(1);
    message.mutable_start()->set_seed(spec.sampling.seed);
    return message;
  }

  absl::StatusOr<EngineRequest> MakeSpec(const LoadedModel& model) const {
    EngineRequest spec;
    NIBBLE_ASSIGN_OR_RETURN(spec.prompt, PromptTokens(registry_, model, request_));
    const int64_t left = model.config.context - static_cast<int64_t>(spec.prompt.size());
    if (left < 0) {
      return FieldError(absl::StatusCode::kInvalidArgument, "prompt",
                        StrCat(spec.prompt.size(), " tokens"),
                        StrCat("at most ", model.config.context, ", the model's context"));
    }
    spec.max_tokens =
        request_.has_max_tokens()
            ? request_.max_tokens()
            : std::max<int64_t>(LongestSequence(model) - static_cast<int64_t>(spec.prompt.size()),
                                std::min<int64_t>(left, 1));
    spec.min_tokens = request_.min_tokens();
    spec.n = request_.has_n() ? request_.n() : 1;
    spec.priority = request_.priority();
    NIBBLE_RETURN_IF_ERROR(SetStopTokens(model, spec));
    if (request_.has_logprobs()) spec.top_logprobs = request_.logprobs();
    spec.score_prompt = request_.has_prompt_logprobs();
    spec.prompt_top_logprobs = request_.prompt_logprobs();
    spec.deadline = absl::FromChrono(context_->deadline());
    NIBBLE_RETURN_IF_ERROR(SetSampling(model, spec.sampling));
    return spec;
  }

  absl::Status SetStopTokens(const LoadedModel& model, EngineRequest& spec) const {
    for (const int32_t token : request_.stop_token_ids()) {
      if (token < 0 || token >= model.config.vocab) {
        return FieldError(absl::StatusCode::kInvalidArgument, "stop_token_ids", StrCat(token),
                          StrCat("token ids 0 to ", model.config.vocab - 1));
      }
      spec.stop_tokens.push_back(token);
    }
    if (request_.ignore_eos()) return absl::OkStatus();
    for (const int64_t eos : model.config.eos_token_ids) {
      spec.stop_tokens.push_back(static_cast<int32_t>(eos));
    }
    return absl::OkStatus();
  }

  absl::Status SetSampling(const LoadedModel& model, SamplingParams& sampling) const {
    const v1::Sampling& wanted = request_.sampling();
    sampling.temperature = wanted.temperature();
    sampling.top_k = wanted.top_k();
    if (wanted.has_top_p()) sampling.top_p = wanted.top_p();
    sampling.min_p = wanted.min_p();
    if (wanted.has_repetition_penalty()) sampling.repetition_penalty = wanted.repetition_penalty();
    sampling.presence_penalty = wanted.presence_penalty();
    sampling.frequency_penalty = wanted.frequency_penalty();
    for (const auto& [token, bias] : wanted.logit_bias()) {
      if (token < 0 || token >= model.config.vocab) {
        return FieldError(absl::StatusCode::kInvalidArgument, "sampling.logit_bias", StrCat(token),
                          StrCat("token ids 0 to ", model.config.vocab - 1));
      }
      sampling.logit_bias.emplace_back(token, bias);
    }
    sampling.seed = wanted.has_seed() ? wanted.seed() : std::random_device{}();
    return absl::OkStatus();
  }

  // On the engine's thread.
  Flow OnEvent(const EngineEvent& event) {
    admitted_ = std::min(admitted_, event.admitted);
    cached_prompt_tokens_ =
        std::max(cached_prompt_tokens_, event.choice == 0 ? event.cached_prompt_tokens : 0);
    CountTokens(event);
    ChoiceText& choice = choices_[event.choice];
    const bool last = event.finish != FinishReason::kNone;
    if (last) --choices_left_;
    if (event.finish == FinishReason::kError) status_ = event.status;
    if (event.finish == FinishReason::kDeadline) {
      status_ = absl::DeadlineExceededError("the deadline passed before the last token");
    }
    size_t waiting = 0;
    if (!choice.ended) {
      if (std::optional<v1::GenerateResponse> message = MakeMessage(event, choice)) {
        waiting = Send(*std::move(message));
      }
    }
    if (choices_left_ == 0) {
      Conclude();
      return Flow::kContinue;
    }
    return waiting >= kMostWaiting ? Flow::kPause : Flow::kContinue;
  }

  // A choice's last message waits for the next, because the stream's last one carries the usage.
  size_t Send(v1::GenerateResponse message) {
    if (message.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) return Push(std::move(message));
    if (last_message_) Push(*std::move(last_message_));
    last_message_ = std::move(message);
    return 0;
  }

  void CountTokens(const EngineEvent& event) {
    if (event.tokens.empty()) return;
    const absl::Time now = absl::Now();
    if (!first_token_) {
      first_token_ = now;
      metrics_.FirstTokenSeconds(request_.model()).Observe(absl::ToDoubleSeconds(now - began_));
      metrics_.prompt_tokens.Add({{"model", request_.model()}})
          .Increment(static_cast<double>(prompt_tokens_));
    } else {
      metrics_.NextTokenSeconds(request_.model()).Observe(absl::ToDoubleSeconds(now - last_token_));
    }
    last_token_ = now;
    metrics_.generated_tokens.Add({{"model", request_.model()}})
        .Increment(static_cast<double>(event.tokens.size()));
  }

  // Nothing when there is nothing to show yet.
  std::optional<v1::GenerateResponse> MakeMessage(const EngineEvent& event, ChoiceText& choice) {
    v1::GenerateResponse message;
    message.set_index(event.choice);
    for (const int32_t token : event.tokens) {
      ++choice.tokens;
      message.add_token_ids(token);
      message.mutable_text()->append(choice.stops.Push(choice.decoder.Push(TokenText(token))));
    }
    for (const TokenLogprob& logprob : event.logprobs) {
      *message.add_logprobs() = LogprobMessage(logprob, *model_->tokenizer);
    }
    for (const TokenLogprob& logprob : event.prompt_logprobs) {
      *message.add_prompt_logprobs() = LogprobMessage(logprob, *model_->tokenizer);
    }
    const bool ends = event.finish == FinishReason::kStop || event.finish == FinishReason::kLength;
    if (ends && !choice.stops.matched()) {
      message.mutable_text()->append(choice.stops.Push(choice.decoder.Finish()));
    }
    if (choice.stops.matched()) {
      choice.ended = true;
      message.set_finish_reason(v1::FINISH_REASON_STOP);
      message.set_matched_stop(choice.stops.match());
      CancelWhenAllEnded();
    } else if (ends) {
      message.mutable_text()->append(choice.stops.Finish());
      message.set_finish_reason(event.finish == FinishReason::kStop ? v1::FINISH_REASON_STOP
                                                                    : v1::FINISH_REASON_LENGTH);
      if (event.stop_token) message.set_matched_stop_token_id(*event.stop_token);
    } else if (event.finish != FinishReason::kNone) {
      return std::nullopt;
    }
    return message;
  }

  std::string TokenText(int32_t token) const {
    if (!request_.include_special_tokens() && model_->tokenizer->IsSpecial(token)) return {};
    // Every id below the vocabulary has bytes; a model's padded rows beyond it have none.
    return model_->tokenizer->TokenBytes(token).value_or("");
  }

  void CancelWhenAllEnded() {
    const bool all = std::ranges::all_of(choices_, [](const ChoiceText& c) { return c.ended; });
    absl::MutexLock lock(&mutex_);
    if (all && id_) model_->engine->Cancel(*id_);
  }

  void Conclude() {
    bool aborted = false;
    {
      absl::MutexLock lock(&mutex_);
      id_.reset();
      aborted = aborted_;
    }
    if (aborted) status_ = absl::CancelledError("cancelled by the client");
    if (last_message_) {
      if (status_.ok()) AddUsage(*last_message_);
      Push(*std::move(last_message_));
    }
    End(timer_.Done(ToGrpcStatus(status_)));
  }

  void AddUsage(v1::GenerateResponse& message) const {
    int64_t completion = 0;
    for (const ChoiceText& choice : choices_) completion += choice.tokens;
    message.mutable_usage()->set_prompt_tokens(prompt_tokens_);
    message.mutable_usage()->set_completion_tokens(completion);
    message.mutable_usage()->set_cached_prompt_tokens(cached_prompt_tokens_);
    const absl::Time now = absl::Now();
    message.mutable_timing()->set_queue_seconds(
        absl::ToDoubleSeconds(std::min(admitted_, now) - began_));
    message.mutable_timing()->set_time_to_first_token_seconds(
        absl::ToDoubleSeconds(first_token_.value_or(now) - began_));
    message.mutable_timing()->set_total_seconds(absl::ToDoubleSeconds(now - began_));
  }

  grpc::CallbackServerContext* const context_;
  const v1::GenerateRequest request_;
  Registry& registry_;
  Metrics& metrics_;
  RpcTimer timer_;
  const absl::Time began_ = absl::Now();

  absl::Mutex mutex_;
  ModelHandle model_;
  std::optional<RequestId> id_ ABSL_GUARDED_BY(mutex_);
  bool aborted_ ABSL_GUARDED_BY(mutex_) = false;

  // The engine's thread only, once submitted.
  std::vector<ChoiceText> choices_;
  int32_t choices_left_ = 0;
  int64_t prompt_tokens_ = 0;
  int64_t cached_prompt_tokens_ = 0;  // of choice 0: the others share its blocks anyway
  absl::Time admitted_ = absl::InfiniteFuture();
  std::optional<absl::Time> first_token_;
  absl::Time last_token_;
  absl::Status status_;
  std::optional<v1::GenerateResponse> last_message_;
};

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* StartGenerate(grpc::CallbackServerContext* context,
                                                              const v1::GenerateRequest* request,
                                                              Registry& registry, Metrics& metrics,
                                                              TaskThread& tasks) {
  auto* generation = new Generation(context, request, registry, metrics);
  tasks.Run([generation, &tasks] { generation->Begin(tasks); });
  return generation;
}

}  // namespace nibble
