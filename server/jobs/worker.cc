#include "server/jobs/worker.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/v1/quantization.pb.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/kernels/device/devices.h"
#include "quant/pipeline/pipeline.h"
#include "server/jobs/job_spec.h"
#include "server/jobs/job_store.h"
#include "server/jobs/supervisor.h"

namespace nibble {
namespace {

// The worker's end of the supervisor's socket, on standard input.
class SupervisorLine {
 public:
  // Waits for a wake or the end.
  void Wait() { Read(-1); }
  // True once the supervisor has asked the worker to stop.
  bool Stopped() {
    Read(0);
    return stopped_;
  }
  void Tell(std::string_view word, int64_t count) {
    const std::string line = StrCat(word, " ", count, "\n");
    // A supervisor that is gone is noticed by the next read.
    send(STDIN_FILENO, line.data(), line.size(), MSG_NOSIGNAL);
  }

 private:
  // Takes what has come, waiting up to `millis` (-1: for ever) for the first of it.
  void Read(int millis) {
    pollfd input = {STDIN_FILENO, POLLIN, 0};
    while (!stopped_ && poll(&input, 1, millis) > 0) {
      char wakes[256];
      const ssize_t count = recv(STDIN_FILENO, wakes, sizeof(wakes), 0);
      stopped_ = count == 0 || (count < 0 && errno != EINTR);
      millis = 0;
    }
  }

  bool stopped_ = false;
};

class Worker {
 public:
  Worker(DataRoot root, std::unique_ptr<JobStore> store, std::string name, const Device& device,
         DeviceCheck works)
      : root_(std::move(root)),
        store_(std::move(store)),
        name_(std::move(name)),
        device_(device),
        works_(std::move(works)) {}

  absl::Status Run() {
    NIBBLE_RETURN_IF_ERROR(CheckDevice(device_));
    line_.Tell(kDeviceWord, DeviceBytes(device_));
    while (!line_.Stopped()) {
      NIBBLE_ASSIGN_OR_RETURN(const std::optional<Job> job, store_->Claim(name_));
      if (job.has_value()) {
        line_.Tell(job->id, 0);
        NIBBLE_RETURN_IF_ERROR(RunJob(*job));
        line_.Tell(job->id, 0);
      } else {
        line_.Wait();
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status RunJob(const Job& job) {
    const Lease lease{job.id, job.attempt};
    left_.clear();
    spdlog::info("{} attempt {}: {} -> {} on {}", job.id, job.attempt, job.submitted.model,
                 job.submitted.output, DeviceName(device_));
    const absl::StatusOr<std::string> summary = Quantize(job, lease);
    spdlog::info("{} attempt {}: {}", job.id, job.attempt, summary.status().ToString());
    // A device that works no more in this process is no fault of the job: another process goes on.
    if (!summary.ok()) NIBBLE_RETURN_IF_ERROR(works_(device_));
    const absl::Status ended = End(job, lease, summary);
    // Another attempt has the job by now: nothing more to say about it.
    return absl::IsAborted(ended) ? absl::OkStatus() : ended;
  }

  absl::Status End(const Job& job, const Lease& lease, const absl::StatusOr<std::string>& summary) {
    if (summary.ok()) return store_->Succeed(lease, *summary);
    // The finished layers stay for the next attempt.
    if (!left_.empty()) return Release(job, lease);
    if (absl::IsAborted(summary.status())) return summary.status();
    // First: the disk may be full.
    const absl::Status removed = RemoveStaging(root_.artifacts() / job.submitted.output);
    if (!removed.ok()) spdlog::error("{}: {}", job.id, removed.ToString());
    if (absl::IsCancelled(summary.status())) return store_->EndCancelled(lease);
    return store_->Fail(lease, summary.status());
  }

  absl::Status Release(const Job& job, const Lease& lease) {
    NIBBLE_RETURN_IF_ERROR(store_->Release(lease, left_));
    // Unless it was cancelled at that moment.
    NIBBLE_ASSIGN_OR_RETURN(const std::string live, store_->LiveJobOf(job.submitted.output));
    return live.empty() ? RemoveStaging(root_.artifacts() / job.submitted.output)
                        : absl::OkStatus();
  }

  // The serialized summary.
  absl::StatusOr<std::string> Quantize(const Job& job, const Lease& lease) {
    v1::JobSpec message;
    if (!message.ParseFromString(job.submitted.spec)) {
      return absl::DataLossError("the job's spec in the store can't be parsed");
    }
    NIBBLE_ASSIGN_OR_RETURN(const JobPlan plan, MakeJobPlan(message, root_));
    PeakBytes peak;
    const auto report = [&](const Progress& progress) {
      if (progress.finished != nullptr) {
        peak.host = std::max(peak.host, progress.finished->peak_host_bytes);
        peak.device = std::max(peak.device, progress.finished->peak_device_bytes);
      }
      return Report(lease, progress);
    };
    NIBBLE_ASSIGN_OR_RETURN(
        const QuantizeSummary summary,
        QuantizeModel(plan.spec, plan.checkpoint, plan.artifact, report, device_));
    return SerializeSummary(summary, plan, peak);
  }

  // What a layer's report has to say in words.
  static std::string Warning(const LayerReport& report) {
    std::string warning;
    for (const LinearReport& linear : report.linears) {
      if (linear.damping_escalations == 0) continue;
      warning +=
          StrCat(warning.empty() ? "" : "; ", linear.name, ": damping raised to ", linear.damping);
    }
    return warning;
  }

  absl::Status Report(const Lease& lease, const Progress& progress) {
    if (line_.Stopped()) return Leave("its worker was told to stop");
    const JobProgress row = {.phase = PhaseNumber(progress.phase),
                             .layer = progress.layer,
                             .layers = progress.layers,
                             .mean_output_error = progress.mean_output_error,
                             .seconds = progress.seconds,
                             .seconds_left = progress.seconds_left};
    const bool finished = progress.finished != nullptr;
    NIBBLE_RETURN_IF_ERROR(store_->Report(
        lease, row, finished ? Warning(*progress.finished) : progress.note,
        finished ? LayerReportMessage(*progress.finished).SerializeAsString() : std::string()));
    const bool layer_ended = finished && progress.phase == Phase::kQuantizing;
    line_.Tell(lease.job, layer_ended ? 1 : 0);
    if (!layer_ended || progress.layer == progress.layers) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(const bool outranked, store_->IsOutranked(lease));
    return outranked ? Leave("a job of higher priority came first") : absl::OkStatus();
  }

  // Ends the attempt; another goes on from its finished layers.
  absl::Status Leave(std::string_view why) {
    left_ = why;
    return absl::CancelledError(left_);
  }

  const DataRoot root_;
  const std::unique_ptr<JobStore> store_;
  const std::string name_;
  const Device device_;
  const DeviceCheck works_;
  SupervisorLine line_;
  std::string left_;  // why the attempt was left; empty: it was not
};

}  // namespace

absl::Status RunWorker(const DataRoot& root, const std::string& name, const Device& device,
                       DeviceCheck works) {
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<JobStore> store, JobStore::Open(root.database()));
  return Worker(root, std::move(store), name, device, std::move(works)).Run();
}

}  // namespace nibble
