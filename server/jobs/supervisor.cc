#include "server/jobs/supervisor.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/jobs/recovery.h"

namespace nibble {
namespace {

// Milliseconds for poll; forever for an infinite duration.
int PollMillis(absl::Duration time) {
  if (time == absl::InfiniteDuration()) return -1;
  return static_cast<int>(std::max<int64_t>(0, absl::ToInt64Milliseconds(time) + 1));
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerSupervisor>> WorkerSupervisor::Start(Options options,
                                                                          JobStore& store,
                                                                          JobNotifier& notifier) {
  FileDescriptor stop(eventfd(0, EFD_CLOEXEC));
  if (!stop.valid()) return absl::ResourceExhaustedError(StrCat("eventfd: ", strerror(errno)));
  auto supervisor = std::unique_ptr<WorkerSupervisor>(
      new WorkerSupervisor(std::move(options), store, notifier, std::move(stop)));
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
      end = StrCat("worker ", options_.name, " ", Relay(child->pid, socket));
    } else {
      end = StrCat("worker ", options_.name, " can't be started: ", child.status().message());
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
  int64_t count = 0;
  if (!absl::SimpleAtoi(parts.second, &count)) {
    options_.log(StrCat("from worker ", options_.name, ": found \"", line,
                        "\", expected a job and a count"));
    return;
  }
  if (parts.first == kDeviceWord) {
    device_bytes_ = count;
    return;
  }
  if (count > 0) options_.on_layers(count);
  notifier_.Notify(parts.first);
}

absl::Status WorkerSupervisor::TakeBack(Interruption interruption, std::string_view reason) {
  NIBBLE_ASSIGN_OR_RETURN(
      const std::vector<Job> jobs,
      TakeBackJobs(store_, options_.artifacts, options_.name, interruption, reason));
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
