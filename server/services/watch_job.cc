#include "server/services/watch_job.h"

#include <deque>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "quant/base/strings.h"
#include "server/ops/grpc_status.h"
#include "server/ops/names.h"
#include "server/services/job_messages.h"

namespace nibble {
namespace {

constexpr int kEventsAtOnce = 64;

class JobWatcher : public grpc::ServerWriteReactor<v1::JobEvent> {
 public:
  JobWatcher(const v1::WatchJobRequest& request, JobStore& store, JobNotifier& notifier,
             Metrics& metrics)
      : id_(request.job_id()),
        store_(store),
        notifier_(notifier),
        timer_(metrics, "WatchJob"),
        sequence_(request.after_sequence()) {
    {
      absl::MutexLock lock(&mutex_);
      if (absl::Status status = CheckStart(); !status.ok()) End(status);
    }
    ticket_ = notifier_.Add(id_, [this] { Advance(); });
    Advance();
  }

  void OnWriteDone(bool ok) override {
    {
      absl::MutexLock lock(&mutex_);
      writing_ = false;
      // The client is gone.
      if (!ok) End(absl::CancelledError("the stream is closed"));
    }
    Advance();
  }

  void OnCancel() override {
    absl::MutexLock lock(&mutex_);
    End(absl::CancelledError("cancelled by the client"));
  }

  void OnDone() override {
    notifier_.Remove(ticket_);
    delete this;
  }

 private:
  absl::Status CheckStart() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::StatusOr<Job> job = store_.Get(id_);
    if (!job.ok()) return job.status();
    if (sequence_ < 0) {
      return FieldError(absl::StatusCode::kInvalidArgument, "after_sequence", StrCat(sequence_),
                        "0 or more");
    }
    if (sequence_ > job->last_sequence) {
      return FieldError(absl::StatusCode::kOutOfRange, "after_sequence", StrCat(sequence_),
                        StrCat("at most the last event's ", job->last_sequence));
    }
    return absl::OkStatus();
  }

  // Starts the next write, or ends the stream after the last event, or leaves it to the notifier.
  void Advance() {
    absl::MutexLock lock(&mutex_);
    if (writing_ || ended_) return;
    if (waiting_.empty()) {
      if (absl::Status status = Fetch(); !status.ok()) return End(status);
    }
    if (waiting_.empty()) {
      if (complete_) End(absl::OkStatus());
      return;
    }
    message_ = std::move(waiting_.front());
    waiting_.pop_front();
    writing_ = true;
    StartWrite(&message_);
  }

  absl::Status Fetch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    // The job first: if it has ended, the events that follow are all there will be.
    const absl::StatusOr<Job> job = store_.Get(id_);
    if (!job.ok()) return job.status();
    const auto events = store_.Events(id_, sequence_, kEventsAtOnce);
    if (!events.ok()) return events.status();
    if (!events->empty() && IsEnded(events->back().state) && !IsEnded(job->state)) {
      return absl::OkStatus();  // ended in between: its notice is on the way
    }
    for (const JobEvent& event : *events) waiting_.push_back(EventMessage(*job, event));
    if (!events->empty()) sequence_ = events->back().sequence;
    complete_ = IsEnded(job->state) && events->empty();
    return absl::OkStatus();
  }

  void End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (ended_) return;
    ended_ = true;
    Finish(timer_.Done(ToGrpcStatus(status)));
  }

  const std::string id_;
  JobStore& store_;
  JobNotifier& notifier_;
  JobNotifier::Ticket ticket_ = 0;
  RpcTimer timer_;
  absl::Mutex mutex_;
  int64_t sequence_ ABSL_GUARDED_BY(mutex_);  // of the last event fetched
  std::deque<v1::JobEvent> waiting_ ABSL_GUARDED_BY(mutex_);
  v1::JobEvent message_ ABSL_GUARDED_BY(mutex_);  // being written
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool complete_ ABSL_GUARDED_BY(mutex_) = false;  // every event of an ended job was fetched
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(const v1::WatchJobRequest& request,
                                                 JobStore& store, JobNotifier& notifier,
                                                 Metrics& metrics) {
  return new JobWatcher(request, store, notifier, metrics);
}

}  // namespace nibble
