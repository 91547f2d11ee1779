#include "server/services/evaluation_service.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/pipeline/corpus.h"
#include "server/jobs/job_spec.h"
#include "server/ops/grpc_status.h"
#include "server/services/profile_activations.h"
#include "server/services/stream_writer.h"
#include "server/services/versions.h"

namespace nibble {
namespace {

// Windows that wait in the engine while one runs.
constexpr size_t kWindowsInFlight = 2;
constexpr int64_t kDefaultWindow = 2048;

// One perplexity evaluation: windows go through the model's engine as requests that are only
// scored.
class Evaluation : public StreamWriter<v1::EvaluatePerplexityResponse> {
 public:
  Evaluation(const v1::EvaluatePerplexityRequest* request, Registry& registry, Metrics& metrics)
      : request_(*request),
        registry_(registry),
        metrics_(metrics),
        timer_(metrics, "EvaluatePerplexity") {}

  // On `tasks`; the model comes at once or after it is loaded, and the rest goes on there again.
  void Begin(TaskThread& tasks) {
    if (const absl::Status status = Check(); !status.ok()) return Conclude(status);
    registry_.Acquire(request_.model(), compute(), Keep::kWhileUsed,
                      [this, &tasks](absl::StatusOr<ModelHandle> model) {
                        tasks.Run([this, model = std::move(model)] { Start(model); });
                      });
  }

 protected:
  void OnAbort() override {
    absl::MutexLock lock(&mutex_);
    status_ = absl::CancelledError("cancelled by the client");
    for (const auto& [window, id] : in_flight_) model_->engine->Cancel(id);
  }

 private:
  void Start(const absl::StatusOr<ModelHandle>& model) {
    absl::Status status = model.ok() ? Prepare(*model) : model.status();
    {
      absl::MutexLock lock(&mutex_);
      if (status.ok()) {
        Push(Message());
        status = SubmitMore();
      }
      if (!status.ok() && status_.ok()) status_ = status;
      if (status_.ok() || !in_flight_.empty()) return;
      status = status_;
    }
    Conclude(status);
  }

  Compute compute() const {
    return request_.compute() == v1::COMPUTE_F32 ? Compute::kF32 : Compute::kBf16;
  }

  absl::Status Check() {
    NIBBLE_RETURN_IF_ERROR(CheckVersion(request_.version()));
    NIBBLE_RETURN_IF_ERROR(CheckRequestId(request_.request_id()));
    if (!v1::Compute_IsValid(request_.compute())) {
      return FieldError(absl::StatusCode::kInvalidArgument, "compute", StrCat(request_.compute()),
                        "a value of the API");
    }
    NIBBLE_ASSIGN_OR_RETURN(corpus_, FindCorpus(request_.corpus(), registry_.root()));
    if (request_.has_windows() && request_.windows() < 1) {
      return FieldError(absl::StatusCode::kInvalidArgument, "windows", StrCat(request_.windows()),
                        "1 or more");
    }
    return absl::OkStatus();
  }

  absl::Status Prepare(const ModelHandle& model) {
    model_ = model;
    const v1::CorpusRef& ref = request_.corpus();
    const int64_t context = model_->config.context;
    const int64_t window =
        request_.has_window() ? request_.window() : std::min(kDefaultWindow, context);
    if (window < 2 || window > context) {
      return FieldError(absl::StatusCode::kInvalidArgument, "window", StrCat(window),
                        StrCat("2 to the model's context of ", context));
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string text,
                            ReadCorpus(corpus_, ref.first_text(), ref.last_text()));
    NIBBLE_RETURN_IF_ERROR(Aborted());
    NIBBLE_ASSIGN_OR_RETURN(windows_, CutWindows(*model_->tokenizer, model_->config.vocab, text,
                                                 window, request_.windows()));
    return absl::OkStatus();
  }

  // Of a client that has left meanwhile.
  absl::Status Aborted() {
    absl::MutexLock lock(&mutex_);
    return status_;
  }

  absl::Status SubmitMore() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (status_.ok() && next_ < windows_.size() && in_flight_.size() < kWindowsInFlight) {
      EngineRequest spec;
      spec.prompt = windows_[next_];
      spec.score_prompt = true;
      spec.priority = request_.priority();
      const size_t window = next_++;
      const auto on_event = [this, window](const EngineEvent& event) {
        return OnEvent(window, event);
      };
      NIBBLE_ASSIGN_OR_RETURN(in_flight_[window],
                              model_->engine->Submit(std::move(spec), on_event));
    }
    return absl::OkStatus();
  }

  // On the engine's thread.
  Flow OnEvent(size_t window, const EngineEvent& event) {
    if (const std::optional<absl::Status> end = Take(window, event)) Conclude(*end);
    return Flow::kContinue;
  }

  // How the evaluation ends, once nothing more is in flight.
  std::optional<absl::Status> Take(size_t window, const EngineEvent& event) {
    absl::MutexLock lock(&mutex_);
    for (const TokenLogprob& logprob : event.prompt_logprobs) {
      negative_log_likelihood_ -= logprob.logprob;
      ++tokens_;
    }
    if (event.finish == FinishReason::kNone) return std::nullopt;
    in_flight_.erase(window);
    if (event.finish == FinishReason::kError && status_.ok()) status_ = event.status;
    if (status_.ok()) {
      ++windows_done_;
      metrics_.evaluated_windows.Add({{"model", request_.model()}}).Increment();
      Push(Message());
      if (const absl::Status status = SubmitMore(); !status.ok()) status_ = status;
    }
    return in_flight_.empty() ? std::optional(status_) : std::nullopt;
  }

  v1::EvaluatePerplexityResponse Message() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    v1::EvaluatePerplexityResponse message;
    message.set_windows_done(windows_done_);
    message.set_windows_total(static_cast<int64_t>(windows_.size()));
    message.set_tokens(tokens_);
    if (tokens_ > 0) {
      const double mean = negative_log_likelihood_ / static_cast<double>(tokens_);
      message.set_negative_log_likelihood(mean);
      message.set_perplexity(std::exp(mean));
    }
    message.set_seconds(absl::ToDoubleSeconds(absl::Now() - began_));
    message.set_done(windows_done_ > 0 && windows_done_ == message.windows_total());
    message.set_version(1);
    return message;
  }

  // The last thing: this may be gone afterwards.
  void Conclude(const absl::Status& status) { End(timer_.Done(ToGrpcStatus(status))); }

  const v1::EvaluatePerplexityRequest request_;
  Registry& registry_;
  Metrics& metrics_;
  RpcTimer timer_;
  const absl::Time began_ = absl::Now();
  std::filesystem::path corpus_;
  ModelHandle model_;
  std::vector<std::vector<int32_t>> windows_;

  absl::Mutex mutex_;
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<size_t, RequestId> in_flight_ ABSL_GUARDED_BY(mutex_);
  int64_t windows_done_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  double negative_log_likelihood_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

EvaluationService::EvaluationService(Registry& registry, Metrics& metrics)
    : registry_(registry), metrics_(metrics) {}

grpc::ServerWriteReactor<v1::EvaluatePerplexityResponse>* EvaluationService::EvaluatePerplexity(
    grpc::CallbackServerContext*, const v1::EvaluatePerplexityRequest* request) {
  auto* evaluation = new Evaluation(request, registry_, metrics_);
  tasks_.Run([this, evaluation] { evaluation->Begin(tasks_); });
  return evaluation;
}

grpc::ServerWriteReactor<v1::ProfileActivationsResponse>* EvaluationService::ProfileActivations(
    grpc::CallbackServerContext*, const v1::ProfileActivationsRequest* request) {
  return nibble::ProfileActivations(*request, registry_.root(), profiles_, metrics_);
}

}  // namespace nibble
