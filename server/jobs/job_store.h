// Jobs and their events as rows. Every change is one transaction that checks the job's state and,
// for a worker, its lease; and adds an event. Shared between the daemon and its worker process.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/jobs/job.h"
#include "server/jobs/sqlite.h"

namespace nibble {

struct JobFilter {
  std::vector<JobState> states;               // empty: all
  std::map<std::string, std::string> labels;  // a job has every one of them
  std::string model;                          // source; empty: any
};

struct JobPage {
  std::vector<Job> jobs;
  std::string next_page_token;  // empty: no more
};

// An attempt that is lost to a dead worker counts towards the limit; one that is drained does not.
enum class Interruption { kLost, kDrained };

inline constexpr int kMaxLostAttempts = 3;

// Thread-safe.
class JobStore {
 public:
  // Opens or creates the database. FAILED_PRECONDITION when a newer nibble wrote it.
  static absl::StatusOr<std::unique_ptr<JobStore>> Open(const std::filesystem::path& path);

  // --- What clients ask for. A job that does not exist is NOT_FOUND.

  struct Submitted {
    Job job;
    bool created = false;  // false: the job that this request_id had already made
  };
  // ALREADY_EXISTS when the request_id stands for another request, or a live job has this output.
  absl::StatusOr<Submitted> Submit(const NewJob& submitted);
  // The job that this request_id has made; none for an unknown or empty one. ALREADY_EXISTS when it
  // stands for another request.
  absl::StatusOr<std::optional<Job>> FindRequest(std::string_view request_id,
                                                 std::string_view request)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Job> Get(std::string_view id);
  // Newest first. INVALID_ARGUMENT for a page token that List has not given.
  absl::StatusOr<JobPage> List(const JobFilter& filter, int page_size,
                               const std::string& page_token);
  // Events with a sequence above `after`, oldest first, at most `limit`.
  absl::StatusOr<std::vector<JobEvent>> Events(std::string_view id, int64_t after, int limit);
  // The finished layers of the job's current attempt, serialized nibble.v1.LayerReports.
  absl::StatusOr<std::vector<std::string>> Layers(const Job& job);
  // QUEUED ends at once, RUNNING becomes CANCELLING; nothing changes for a job being cancelled or
  // CANCELLED. FAILED_PRECONDITION for one that has SUCCEEDED or FAILED.
  absl::StatusOr<Job> Cancel(std::string_view id);
  // Removes an ended job and its events; FAILED_PRECONDITION for a live one.
  absl::Status Delete(std::string_view id);
  absl::StatusOr<std::map<JobState, int64_t>> CountByState();
  // A live job that reads this model or writes it; empty when none does.
  absl::StatusOr<std::string> LiveJobOf(std::string_view model);
  // The newest job that made this output; empty when none is known.
  absl::StatusOr<std::string> MakerOf(std::string_view output);

  // --- What workers do. ABORTED when the lease's attempt is over.

  // The name of a worker begins with that of its device: it may take jobs that this can hold.

  // The QUEUED job of the highest priority, the oldest of those; RUNNING from now.
  absl::StatusOr<std::optional<Job>> Claim(std::string_view worker);
  // Whether this job should make room: a more urgent one waits that its worker may take, and no
  // other worker that may holds a less urgent one. (Of equal priority, the newer is less urgent.)
  absl::StatusOr<bool> IsOutranked(const Lease& lease) ABSL_LOCKS_EXCLUDED(mutex_);
  // Adds an event and renews the heartbeat. CANCELLED when the job is CANCELLING.
  absl::Status Report(const Lease& lease, const JobProgress& progress, std::string_view message,
                      const std::string& layer);
  absl::Status Succeed(const Lease& lease, const std::string& summary);
  absl::Status Fail(const Lease& lease, const absl::Status& error);
  absl::Status EndCancelled(const Lease& lease);
  // Back to the queue, or CANCELLED if that was asked for.
  absl::Status Release(const Lease& lease, std::string_view reason);

  // --- What the supervisor does when a worker lives no more.

  // Takes the jobs back that `worker` holds (empty: that any does): QUEUED with attempt + 1, or
  // FAILED with `reason` when its third attempt was lost; CANCELLING ones become CANCELLED.
  // `clean_up` is called with each as it will be, before anybody can see it so. Returns the jobs as
  // they are now.
  absl::StatusOr<std::vector<Job>> TakeBack(
      std::string_view worker, Interruption interruption, std::string_view reason,
      const std::function<absl::Status(const Job&)>& clean_up);

 private:
  explicit JobStore(SqliteDatabase database) : database_(std::move(database)) {}

  absl::Status Migrate() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Job> Find(std::string_view id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The id in the first row; empty when there is none.
  absl::StatusOr<std::string> FirstId(std::string_view sql, std::string_view name)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::optional<Job>> FindRequestLocked(std::string_view request_id,
                                                       std::string_view request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<bool> HasLiveOutput(std::string_view output) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::string> Insert(const NewJob& submitted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Job> FindLeased(const Lease& lease) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Writes the job's changed row and its event; INTERNAL when its state can't move so.
  absl::Status Move(Job& job, JobState to, std::string_view message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Requeue(Job& job, std::string_view reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status TakeBackOne(Job& job, Interruption interruption, std::string_view reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Save(const Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AddEvent(Job& job, std::string_view message, const std::string& layer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Finds the leased job, changes it, commits.
  template <class Change>
  absl::Status ChangeLeased(const Lease& lease, const Change& change);

  absl::Mutex mutex_;
  SqliteDatabase database_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nibble
