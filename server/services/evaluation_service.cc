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
#include "server/ops/grpc_status.h"
#include "server/services/stream_writer.h"

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

  void Begin() {
    absl::Status status = Prepare();
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

 protected:
  void OnAbort() override {
    absl::MutexLock lock(&mutex_);
    status_ = absl::CancelledError("cancelled by the client");
    for (const auto& [window, id] : in_flight_) model_->engine->Cancel(id);
  }

 private:
  absl::Status Prepare() {
    const v1::CorpusRef& ref = request_.corpus();
    if (request_.version() != 0 && request_.version() != 1) {
      return FieldError(absl::StatusCode::kNotFound, "version", StrCat(request_.version()),
                        "0 or 1");
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::filesystem::path corpus,
                            FindCorpus(registry_.root(), "corpus.name", ref.name()));
    if (request_.has_windows() && request_.windows() < 1) {
      return FieldError(absl::StatusCode::kInvalidArgument, "windows", StrCat(request_.windows()),
                        "1 or more");
    }
    const Compute compute = request_.compute() == v1::COMPUTE_F32 ? Compute::kF32 : Compute::kBf16;
    NIBBLE_ASSIGN_OR_RETURN(model_, registry_.Acquire(request_.model(), compute, Keep::kWhileUsed));
    const int64_t context = model_->config.context;
    const int64_t window =
        request_.has_window() ? request_.window() : std::min(kDefaultWindow, context);
    if (window < 2 || window > context) {
      return FieldError(absl::StatusCode::kInvalidArgument, "window", StrCat(window),
                        StrCat("2 to the model's context of ", context));
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string text,
                            ReadCorpus(corpus, ref.first_text(), ref.last_text()));
    NIBBLE_ASSIGN_OR_RETURN(windows_,
                            CutWindows(*model_->tokenizer, text, window, request_.windows()));
    return absl::OkStatus();
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
  tasks_.Run([evaluation] { evaluation->Begin(); });
  return evaluation;
}

}  // namespace nibble
