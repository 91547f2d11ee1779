#include "server/services/score.h"

#include <grpcpp/server_context.h>

#include <cmath>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/ops/grpc_status.h"
#include "server/services/prompt.h"

namespace nibble {
namespace {

// One text through the model's engine as a request that is only scored.
class Scoring : public grpc::ServerUnaryReactor {
 public:
  Scoring(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
          v1::ScoreResponse* response, Registry& registry, Metrics& metrics)
      : context_(context),
        request_(request),
        response_(response),
        registry_(registry),
        metrics_(metrics),
        timer_(metrics, "Score") {}

  void Begin(TaskThread& tasks) {
    if (const absl::Status status = CheckScore(*request_); !status.ok()) return End(status);
    registry_.Acquire(request_->model(), std::nullopt, Keep::kStay,
                      [this, &tasks](absl::StatusOr<ModelHandle> model) {
                        tasks.Run([this, model = std::move(model)] {
                          const absl::Status status = model.ok() ? Submit(*model) : model.status();
                          if (!status.ok()) End(status);
                        });
                      });
  }

  void OnCancel() override {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    if (id_) model_->engine->Cancel(*id_);
  }
  void OnDone() override { delete this; }

 private:
  absl::Status Submit(const ModelHandle& model) {
    EngineRequest spec;
    NIBBLE_ASSIGN_OR_RETURN(spec.prompt, InputTokens(*model));
    if (spec.prompt.size() < 2) {
      return FieldError(absl::StatusCode::kInvalidArgument, "input",
                        StrCat(spec.prompt.size(), " tokens"), "2 or more");
    }
    spec.score_prompt = true;
    spec.prompt_top_logprobs = request_->top_logprobs();
    spec.priority = request_->priority();
    spec.deadline = absl::FromChrono(context_->deadline());
    response_->mutable_token_ids()->Assign(spec.prompt.begin(), spec.prompt.end());
    absl::MutexLock lock(&mutex_);
    if (cancelled_) return absl::CancelledError("cancelled by the client");
    model_ = model;
    NIBBLE_ASSIGN_OR_RETURN(
        id_, model_->engine->Submit(std::move(spec),
                                    [this](const EngineEvent& event) { return OnEvent(event); }));
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<int32_t>> InputTokens(const LoadedModel& model) const {
    switch (request_->input_case()) {
      case v1::ScoreRequest::kText:
        return model.tokenizer->Encode(request_->text(), SpecialTokens::kAdd);
      case v1::ScoreRequest::kTokenIds:
        return std::vector<int32_t>(request_->token_ids().ids().begin(),
                                    request_->token_ids().ids().end());
      default:
        return std::vector<int32_t>();
    }
  }

  // On the engine's thread.
  Flow OnEvent(const EngineEvent& event) {
    for (const TokenLogprob& logprob : event.prompt_logprobs) {
      *response_->add_logprobs() = LogprobMessage(logprob, *model_->tokenizer);
      sum_ += logprob.logprob;
    }
    switch (event.finish) {
      case FinishReason::kNone:
        return Flow::kContinue;
      case FinishReason::kError:
        End(event.status);
        break;
      case FinishReason::kDeadline:
        End(absl::DeadlineExceededError("the deadline passed before the last token"));
        break;
      case FinishReason::kCancelled:
        End(absl::CancelledError("cancelled by the client"));
        break;
      case FinishReason::kStop:
      case FinishReason::kLength:
        Fill(event);
        End(absl::OkStatus());
    }
    return Flow::kContinue;
  }

  void Fill(const EngineEvent& event) {
    const absl::Time now = absl::Now();
    const double mean = -sum_ / response_->logprobs_size();
    response_->set_negative_log_likelihood(mean);
    response_->set_perplexity(std::exp(mean));
    response_->mutable_usage()->set_prompt_tokens(response_->token_ids_size());
    response_->mutable_timing()->set_queue_seconds(absl::ToDoubleSeconds(event.admitted - began_));
    response_->mutable_timing()->set_total_seconds(absl::ToDoubleSeconds(now - began_));
    response_->set_version(1);
    metrics_.prompt_tokens.Add({{"model", request_->model()}})
        .Increment(static_cast<double>(response_->token_ids_size()));
  }

  // The last thing: this may be gone afterwards.
  void End(const absl::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      id_.reset();
    }
    Finish(timer_.Done(ToGrpcStatus(status)));
  }

  grpc::CallbackServerContext* const context_;
  const v1::ScoreRequest* const request_;
  v1::ScoreResponse* const response_;
  Registry& registry_;
  Metrics& metrics_;
  RpcTimer timer_;
  const absl::Time began_ = absl::Now();
  double sum_ = 0;

  absl::Mutex mutex_;
  ModelHandle model_;
  std::optional<RequestId> id_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

grpc::ServerUnaryReactor* StartScore(grpc::CallbackServerContext* context,
                                     const v1::ScoreRequest* request, v1::ScoreResponse* response,
                                     Registry& registry, Metrics& metrics, TaskThread& tasks) {
  auto* scoring = new Scoring(context, request, response, registry, metrics);
  tasks.Run([scoring, &tasks] { scoring->Begin(tasks); });
  return scoring;
}

}  // namespace nibble
