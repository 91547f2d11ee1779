#include "server/services/job_messages.h"

#include <optional>

#include "absl/time/time.h"

namespace nibble {
namespace {

void SetTime(absl::Time time, google::protobuf::Timestamp& message) {
  const int64_t nanos = absl::ToUnixNanos(time);
  message.set_seconds(nanos / 1'000'000'000);
  message.set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
}

v1::JobProgress ProgressMessage(const JobProgress& progress) {
  v1::JobProgress message;
  message.set_phase(static_cast<v1::JobPhase>(progress.phase));
  message.set_layer(static_cast<int32_t>(progress.layer));
  message.set_layers(static_cast<int32_t>(progress.layers));
  message.set_elapsed_seconds(progress.seconds);
  if (progress.mean_output_error > 0) message.set_relative_error(progress.mean_output_error);
  if (progress.seconds_left) message.set_eta_seconds(*progress.seconds_left);
  return message;
}

v1::Failure FailureMessage(const absl::Status& error) {
  v1::Failure message;
  message.set_code(error.raw_code());
  message.set_message(std::string(error.message()));
  return message;
}

}  // namespace

v1::Job JobMessage(const Job& job) {
  v1::Job message;
  message.set_id(job.id);
  message.mutable_spec()->ParseFromString(job.submitted.spec);
  message.set_request_id(job.submitted.request_id);
  message.set_state(static_cast<v1::JobState>(job.state));
  message.set_reason(job.reason);
  message.set_attempt(job.attempt);
  message.set_lost_attempts(job.lost);
  if (job.started.has_value()) {
    SetTime(*job.started, *message.mutable_started_at());
    *message.mutable_progress() = ProgressMessage(job.progress);
  }
  if (job.state == JobState::kSucceeded) message.mutable_summary()->ParseFromString(job.summary);
  if (job.state == JobState::kFailed) *message.mutable_failure() = FailureMessage(job.error);
  SetTime(job.created, *message.mutable_created_at());
  if (job.ended.has_value()) SetTime(*job.ended, *message.mutable_finished_at());
  message.set_last_sequence(job.last_sequence);
  message.set_worker(job.worker);
  return message;
}

v1::JobEvent EventMessage(const Job& job, const JobEvent& event) {
  v1::JobEvent message;
  message.set_job_id(job.id);
  message.set_sequence(event.sequence);
  SetTime(event.time, *message.mutable_time());
  message.set_attempt(event.attempt);
  message.set_state(static_cast<v1::JobState>(event.state));
  message.set_message(event.message);
  if (event.state == JobState::kRunning || event.state == JobState::kCancelling) {
    *message.mutable_progress() = ProgressMessage(event.progress);
  }
  if (!event.layer.empty()) message.mutable_layer()->ParseFromString(event.layer);
  if (event.state == JobState::kSucceeded) message.mutable_summary()->ParseFromString(job.summary);
  if (event.state == JobState::kFailed) *message.mutable_failure() = FailureMessage(job.error);
  return message;
}

}  // namespace nibble
