// The worker's and the supervisor's half of JobStore.
#include <utility>

#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/jobs/job_store.h"

namespace nibble {

absl::StatusOr<std::optional<Job>> JobStore::Claim(std::string_view worker) {
  absl::MutexLock lock(&mutex_);
  NIBBLE_ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(database_));
  std::string id;
  {
    SqliteStatement row = database_.Prepare(
        "SELECT id FROM jobs WHERE state = 1 AND ? LIKE device || '%' "
        "ORDER BY priority DESC, number LIMIT 1");
    row.Bind(worker);
    NIBBLE_ASSIGN_OR_RETURN(const bool found, row.Step());
    if (!found) return std::nullopt;
    id = row.Text(0);
  }
  NIBBLE_ASSIGN_OR_RETURN(Job job, Find(id));
  job.worker = worker;
  NIBBLE_RETURN_IF_ERROR(Move(job, JobState::kRunning, ""));
  NIBBLE_RETURN_IF_ERROR(transaction.Commit());
  return job;
}

absl::StatusOr<bool> JobStore::IsOutranked(const Lease& lease) {
  absl::MutexLock lock(&mutex_);
  SqliteStatement row = database_.Prepare(
      "SELECT 1 FROM jobs AS mine, jobs AS urgent WHERE mine.id = ? AND urgent.state = 1 "
      "AND urgent.priority > mine.priority AND mine.worker LIKE urgent.device || '%' "
      "AND NOT EXISTS (SELECT 1 FROM jobs WHERE state = 2 AND worker LIKE urgent.device || '%' AND "
      "(priority < mine.priority OR (priority = mine.priority AND number > mine.number)))");
  row.Bind(lease.job);
  return row.Step();
}

absl::StatusOr<Job> JobStore::FindLeased(const Lease& lease) {
  NIBBLE_ASSIGN_OR_RETURN(Job job, Find(lease.job));
  const bool held = job.state == JobState::kRunning || job.state == JobState::kCancelling;
  if (!held || job.attempt != lease.attempt) {
    return absl::AbortedError(StrCat("attempt ", lease.attempt, " of ", lease.job,
                                     " is over: found ", JobStateName(job.state), " in attempt ",
                                     job.attempt));
  }
  return job;
}

template <class Change>
absl::Status JobStore::ChangeLeased(const Lease& lease, const Change& change) {
  absl::MutexLock lock(&mutex_);
  NIBBLE_ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(database_));
  NIBBLE_ASSIGN_OR_RETURN(Job job, FindLeased(lease));
  NIBBLE_RETURN_IF_ERROR(change(job));
  return transaction.Commit();
}

absl::Status JobStore::Report(const Lease& lease, const JobProgress& progress,
                              std::string_view message, const std::string& layer) {
  absl::MutexLock lock(&mutex_);
  NIBBLE_ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(database_));
  NIBBLE_ASSIGN_OR_RETURN(Job job, FindLeased(lease));
  if (job.state == JobState::kCancelling) {
    return absl::CancelledError(StrCat(job.id, " was cancelled by a client"));
  }
  job.progress = progress;
  job.heartbeat = absl::Now();
  NIBBLE_RETURN_IF_ERROR(AddEvent(job, message, layer));
  NIBBLE_RETURN_IF_ERROR(Save(job));
  return transaction.Commit();
}

absl::Status JobStore::Succeed(const Lease& lease, const std::string& summary) {
  return ChangeLeased(lease, [&](Job& job) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    job.summary = summary;
    return Move(job, JobState::kSucceeded, "");
  });
}

absl::Status JobStore::Fail(const Lease& lease, const absl::Status& error) {
  return ChangeLeased(lease, [&](Job& job) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    job.error = error;
    return Move(job, JobState::kFailed, std::string(error.message()));
  });
}

absl::Status JobStore::EndCancelled(const Lease& lease) {
  return ChangeLeased(lease, [&](Job& job) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return Move(job, JobState::kCancelled, "stopped by its worker");
  });
}

absl::Status JobStore::Release(const Lease& lease, std::string_view reason) {
  return ChangeLeased(lease, [&](Job& job) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return job.state == JobState::kCancelling ? Move(job, JobState::kCancelled, reason)
                                              : Requeue(job, reason);
  });
}

absl::Status JobStore::Requeue(Job& job, std::string_view reason) {
  ++job.attempt;
  job.progress = {};
  return Move(job, JobState::kQueued, reason);
}

absl::Status JobStore::TakeBackOne(Job& job, Interruption interruption, std::string_view reason) {
  if (job.state == JobState::kCancelling) return Move(job, JobState::kCancelled, reason);
  if (interruption == Interruption::kDrained) return Requeue(job, reason);
  ++job.lost;
  const std::string message = StrCat(reason, " in attempt ", job.attempt, "; ", job.lost, " of ",
                                     kMaxLostAttempts, " attempts were lost");
  if (job.lost < kMaxLostAttempts) return Requeue(job, message);
  job.error = absl::UnavailableError(message);
  return Move(job, JobState::kFailed, message);
}

absl::StatusOr<std::vector<Job>> JobStore::TakeBack(
    std::string_view worker, Interruption interruption, std::string_view reason,
    const std::function<absl::Status(const Job&)>& clean_up) {
  absl::MutexLock lock(&mutex_);
  NIBBLE_ASSIGN_OR_RETURN(SqliteTransaction transaction, SqliteTransaction::Begin(database_));
  std::vector<std::string> ids;
  {
    SqliteStatement rows =
        database_.Prepare("SELECT id FROM jobs WHERE state IN (2, 3) AND ?1 IN ('', worker)");
    rows.Bind(worker);
    while (true) {
      NIBBLE_ASSIGN_OR_RETURN(const bool more, rows.Step());
      if (!more) break;
      ids.push_back(rows.Text(0));
    }
  }
  std::vector<Job> jobs;
  for (const std::string& id : ids) {
    NIBBLE_ASSIGN_OR_RETURN(Job job, Find(id));
    NIBBLE_RETURN_IF_ERROR(TakeBackOne(job, interruption, reason));
    NIBBLE_RETURN_IF_ERROR(clean_up(job));
    jobs.push_back(std::move(job));
  }
  NIBBLE_RETURN_IF_ERROR(transaction.Commit());
  return jobs;
}

}  // namespace nibble
