// A quantization job as the store keeps it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace nibble {

// A job's life; the numbers are those of nibble.v1.JobState.
//
//   QUEUED -> RUNNING -> SUCCEEDED | FAILED
//   QUEUED -> CANCELLED
//   RUNNING -> CANCELLING -> CANCELLED | SUCCEEDED | FAILED
//   RUNNING -> QUEUED            its worker was lost or drained; attempt + 1
enum class JobState : int {
  kQueued = 1,      // waits for a worker
  kRunning = 2,     // one worker holds it, under its attempt number
  kCancelling = 3,  // its worker has been asked to stop
  kSucceeded = 4,   // ended: the artifact is committed
  kFailed = 5,      // ended: nothing was left behind; `error` says why
  kCancelled = 6,   // ended: nothing was left behind
};

std::string_view JobStateName(JobState state);  // "QUEUED", ...
bool IsEnded(JobState state);
bool CanMove(JobState from, JobState to);

// How far an attempt is.
struct JobProgress {
  int phase = 0;      // nibble.v1.JobPhase; 0: not started
  int64_t layer = 0;  // layers finished
  int64_t layers = 0;
  double mean_output_error = 0;  // over the linears so far
  double seconds = 0;            // since the attempt's start
  std::optional<double> seconds_left;
};

// What a client submits.
struct NewJob {
  std::string request_id;  // unique; empty: none
  std::string request;     // the spec as sent, serialized: what a repeated request_id must repeat
  std::string spec;        // serialized nibble.v1.JobSpec with its defaults filled in
  std::string model;
  std::string output;
  std::map<std::string, std::string> labels;
  int32_t priority = 0;  // higher first
  // Of the devices that alone can hold it, what their names begin with: "cpu", "cuda". Empty: any.
  std::string device;
};

struct Job {
  std::string id;
  NewJob submitted;
  JobState state = JobState::kQueued;
  int attempt = 1;  // the fence: what an older attempt writes is refused
  int lost = 0;     // attempts whose worker died
  JobProgress progress;
  std::string reason;   // why it is QUEUED again; empty otherwise
  absl::Status error;   // why it FAILED
  std::string summary;  // serialized nibble.v1.JobSummary, when SUCCEEDED
  absl::Time created;
  std::optional<absl::Time> started;  // of the last attempt
  std::optional<absl::Time> ended;
  std::optional<absl::Time> heartbeat;  // last sign of the worker that holds it
  std::string worker;                   // who holds it; empty: nobody
  int64_t last_sequence = 0;            // of its newest event
};

// One row of a job's history: a change of state, progress, or a finished layer.
struct JobEvent {
  int64_t sequence = 0;  // 1, 2, ... within the job
  absl::Time time;
  JobState state = JobState::kQueued;
  int attempt = 1;
  std::string message;  // why, of a change of state
  JobProgress progress;
  std::string layer;  // serialized nibble.v1.LayerReport, when one has just ended
};

// A worker's right to write about a job.
struct Lease {
  std::string job;
  int attempt = 0;
};

}  // namespace nibble
