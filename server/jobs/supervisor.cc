#include "server/jobs/supervisor.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {
namespace {

// Milliseconds for poll; forever for an infinite duration.
int PollMillis(absl::Duration time) {
  if (time == absl::InfiniteDuration()) return -1;
  return static_cast<int>(std::max<int64_t>(0, absl::ToInt64Milliseconds(time) + 1));
}

absl::Status Remove(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  if (!error) return absl::OkStatus();
  return absl::InternalError(StrCat("can't remove ", folder.string(), ": ", error.message()));
}

// What the attempts at jobs that have ended have left, such as one cancelled while it waited to go
// on.
absl::Status RemoveOrphans(const std::filesystem::path& artifacts, JobStore& store) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(artifacts, error)) {
    const std::filesystem::path artifact = StagedArtifact(entry.path());
    if (artifact.empty()) continue;
    NIBBLE_ASSIGN_OR_RETURN(const std::string job, store.LiveJobOf(artifact.filename().string()));
    if (job.empty()) NIBBLE_RETURN_IF_ERROR(RemoveStaging(artifact));
  }
  if (!error) return absl::OkStatus();
  return absl::InternalError(StrCat("can't read ", artifacts.string(), ": ", error.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerSupervisor>> WorkerSupervisor::Start(Options options,
                                                                          JobStore& store,
                                                                          JobNotifier& notifier) {
  FileDescriptor stop(eventfd(0, EFD_CLOEXEC));
  if (!stop.valid()) return absl::ResourceExhaustedError(StrCat("eventfd: ", strerror(errno)));
  auto supervisor = std::unique_ptr<WorkerSupervisor>(
      new WorkerSupervisor(std::move(options), store, notifier, std::move(stop)));
  NIBBLE_RETURN_IF_ERROR(
      supervisor->TakeBack(Interruption::kLost, "the worker ended with its daemon"));
  NIBBLE_RETURN_IF_ERROR(RemoveOrphans(supervisor->options_.artifacts, store));
  supervisor->thread_ = std::thread([raw = supervisor.get()] { raw->Loop(); });
  return supervisor;
}

WorkerSupervisor::WorkerSupervisor(Options options, JobStore& store, JobNotifier& notifier,
                                   FileDescriptor stop)
    : options_(std::move(options)), store_(store), notifier_(notifier), stop_(std::move(stop)) {}

WorkerSupervisor::~WorkerSupervisor() {
  Stop();
  if (thread_.joinable()) thread_.join();
}

void WorkerSupervisor::Stop() {
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  eventfd_write(stop_.get(), 1);
  if (socket_.valid()) shutdown(socket_.get(), SHUT_WR);
}

void WorkerSupervisor::WakeWorker() {
  absl::MutexLock lock(&mutex_);
  // A full or closed socket needs no word: the worker has wakes waiting, or looks when it starts.
  if (socket_.valid()) send(socket_.get(), "\n", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

bool WorkerSupervisor::stopping() {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void WorkerSupervisor::Loop() {
  absl::Duration backoff = options_.first_backoff;
  while (!stopping()) {
    const absl::Time started = absl::Now();
    std::string end;
    absl::StatusOr<ChildProcess> child = StartChild(options_.command, options_.environment);
    if (child.ok()) {
      const int socket = child->socket.get();
      {
        absl::MutexLock lock(&mutex_);
        socket_ = std::move(child->socket);
        if (stopping_) shutdown(socket, SHUT_WR);
      }
      end = StrCat("worker ", Relay(child->pid, socket));
    } else {
      end = StrCat("worker can't be started: ", child.status().message());
    }
    const bool drained = stopping();
    options_.log(end);
    TakeBackSurely(drained ? Interruption::kDrained : Interruption::kLost, end);
    if (drained) return;
    if (absl::Now() - started >= options_.longest_backoff) backoff = options_.first_backoff;
    if (!Wait(backoff)) return;
    backoff = std::min(backoff * 2, options_.longest_backoff);
    options_.on_restart();
  }
}

std::string WorkerSupervisor::Relay(pid_t pid, int socket) {
  std::string line;
  absl::Time deadline = absl::InfiniteFuture();
  pollfd polls[] = {{socket, POLLIN, 0}, {stop_.get(), POLLIN, 0}};
  while (true) {
    const int ready = poll(polls, 2, PollMillis(deadline - absl::Now()));
    if (ready < 0) continue;  // EINTR
    if (ready == 0) {
      kill(pid, SIGKILL);
      deadline = absl::InfiniteFuture();
      continue;
    }
    if (polls[1].revents != 0) {
      polls[1].fd = -1;  // once is enough
      deadline = absl::Now() + options_.drain;
    }
    if (polls[0].revents == 0) continue;
    char bytes[4096];
    const ssize_t count = recv(socket, bytes, sizeof(bytes), 0);
    if (count > 0) {
      Receive({bytes, static_cast<size_t>(count)}, line);
    } else if (count == 0 || errno != EINTR) {
      break;
    }
  }
  {
    absl::MutexLock lock(&mutex_);
    socket_.Reset();
  }
  // A worker that closed its socket is no worker any more.
  kill(pid, SIGKILL);
  return WaitForChild(pid);
}

void WorkerSupervisor::Receive(std::string_view bytes, std::string& line) {
  for (char c : bytes) {
    if (c == '\n') {
      HandleLine(line);
      line.clear();
    } else {
      line += c;
    }
  }
}

void WorkerSupervisor::HandleLine(const std::string& line) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(line, absl::MaxSplits(' ', 1));
  int64_t layers = 0;
  if (!absl::SimpleAtoi(parts.second, &layers)) {
    options_.log(StrCat("from the worker: found \"", line, "\", expected a job and a count"));
    return;
  }
  if (layers > 0) options_.on_layers(layers);
  notifier_.Notify(parts.first);
}

absl::Status WorkerSupervisor::TakeBack(Interruption interruption, std::string_view reason) {
  const auto clean_up = [&](const Job& job) {
    // While it lives the output's name is the job's own: this was committed by a worker that died
    // before it could say so.
    const std::filesystem::path artifact = options_.artifacts / job.submitted.output;
    NIBBLE_RETURN_IF_ERROR(Remove(artifact));
    return IsEnded(job.state) ? RemoveStaging(artifact) : absl::OkStatus();
  };
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Job> jobs,
                          store_.TakeBack(interruption, reason, clean_up));
  for (const Job& job : jobs) {
    options_.log(StrCat(job.id, " is ", JobStateName(job.state), ", attempt ", job.attempt));
    notifier_.Notify(job.id);
  }
  return absl::OkStatus();
}

void WorkerSupervisor::TakeBackSurely(Interruption interruption, std::string_view reason) {
  while (true) {
    const absl::Status status = TakeBack(interruption, reason);
    if (status.ok()) return;
    options_.log(StrCat("jobs not taken back: ", std::string(status.message())));
    // When stopping, the next daemon does it.
    if (!Wait(options_.first_backoff)) return;
  }
}

bool WorkerSupervisor::Wait(absl::Duration time) {
  pollfd stop = {stop_.get(), POLLIN, 0};
  return poll(&stop, 1, PollMillis(time)) == 0;
}

}  // namespace nibble
