// Keeps one worker process alive and takes back the jobs of a dead one.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/jobs/job_notifier.h"
#include "server/jobs/job_store.h"
#include "server/ops/child_process.h"

namespace nibble {

inline constexpr char kDeviceWord[] = "device";

// The worker and the supervisor talk in lines over a socket. To the worker: an empty line (look at
// the queue), end of file (stop). From it: "device <bytes>", its GPU's memory, once it knows; and
// "<job id> <layers just finished>", for each new event.
class WorkerSupervisor {
 public:
  struct Options {
    std::string name;                      // by which it claims jobs; no other worker has it
    std::vector<std::string> command;      // the worker's argv; command[0] is a path
    std::vector<std::string> environment;  // "NAME=value", added to the daemon's
    std::filesystem::path artifacts;       // where staging folders are
    absl::Duration first_backoff = absl::Milliseconds(100);  // doubles with each quick death
    absl::Duration longest_backoff = absl::Seconds(30);      // a worker that lived so long is sound
    absl::Duration drain = absl::Seconds(20);                // how long a worker may take to stop
    // Called on the supervisor's thread.
    std::function<void()> on_restart = [] {};
    std::function<void(int64_t layers)> on_layers = [](int64_t) {};
    std::function<void(std::string_view line)> log = [](std::string_view) {};
  };

  // Starts a worker. `store` and `notifier` outlive the supervisor.
  static absl::StatusOr<std::unique_ptr<WorkerSupervisor>> Start(Options options, JobStore& store,
                                                                 JobNotifier& notifier);
  // Asks the worker to stop, waits, and puts its job back in the queue.
  ~WorkerSupervisor();

  // A job was submitted or cancelled.
  void WakeWorker();
  // All memory of the worker's GPU; 0: it has none, or has not told yet.
  int64_t device_bytes() const { return device_bytes_; }
  // Asks the worker to leave its job and end; the destructor waits for it.
  void Stop();

 private:
  WorkerSupervisor(Options options, JobStore& store, JobNotifier& notifier, FileDescriptor stop);

  void Loop();
  // Passes the worker's lines on until its end; kills it when it outlives the drain.
  std::string Relay(pid_t pid, int socket);
  void Receive(std::string_view bytes, std::string& line);
  void HandleLine(const std::string& line);
  absl::Status TakeBack(Interruption interruption, std::string_view reason);
  // The same, again until it succeeds: a job must not stay RUNNING without a worker.
  void TakeBackSurely(Interruption interruption, std::string_view reason);
  // False when stopped while waiting.
  bool Wait(absl::Duration time);
  bool stopping() ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  JobStore& store_;
  JobNotifier& notifier_;
  std::atomic<int64_t> device_bytes_ = 0;
  const FileDescriptor stop_;  // eventfd, readable once stopping
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  FileDescriptor socket_ ABSL_GUARDED_BY(mutex_);  // of the living worker
  std::thread thread_;
};

}  // namespace nibble
