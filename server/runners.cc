#include "server/runners.h"

#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "quant/base/strings.h"
#include "quant/kernels/device/devices.h"
#include "server/ops/logging.h"
#include "server/runner/remote_runner.h"
#include "server/runner/runner_process.h"

namespace nibble {
namespace {

// This program again, as the runner of `folder`.
std::vector<std::string> RunnerCommand(const Config& config, const std::filesystem::path& folder,
                                       const RunnerOptions& options) {
  std::vector<std::string> command = {std::filesystem::read_symlink("/proc/self/exe").string(),
                                      "runner",
                                      "--folder",
                                      folder.string(),
                                      "--device",
                                      DeviceName(options.device),
                                      "--gpu-memory-fraction",
                                      StrCat(options.gpu_memory_fraction),
                                      "--kv-format",
                                      options.kv_format == KvFormat::kE4M3 ? "e4m3" : "bf16",
                                      "--data-root",
                                      config.root.folder.string(),
                                      "--log-level",
                                      config.log_level};
  if (options.compute == Compute::kF32) command.emplace_back("--f32");
  if (options.kv_bytes > 0) {
    command.emplace_back("--kv-bytes");
    command.push_back(StrCat(options.kv_bytes));
  }
  return command;
}

}  // namespace

RunnerOptions RunnerOptionsOf(const Config& config) {
  return {.device = config.device,
          .compute = config.compute,
          .kv_bytes = config.kv_bytes,
          .gpu_memory_fraction = config.gpu_memory_fraction,
          .kv_format = config.kv_format};
}

Registry::RunnerMaker MakerOf(const Config& config, Metrics& metrics) {
  if (config.runner == Config::Runner::kInline) return MakeRunner;
  return [config, &metrics](const std::filesystem::path& folder, const RunnerOptions& options) {
    const std::string model = folder.filename().string();
    RemoteRunnerOptions remote;
    remote.command = [config, folder, options](int64_t kv_bytes) {
      RunnerOptions child = options;
      if (kv_bytes > 0) child.kv_bytes = kv_bytes;
      return RunnerCommand(config, folder, child);
    };
    remote.on_restart = [&restarts = metrics.runner_restarts.Add({{"model", model}})] {
      restarts.Increment();
    };
    remote.log = [model](std::string_view line) { spdlog::warn("{}: {}", model, line); };
    return MakeRemoteRunner(std::move(remote));
  };
}

int RunAsRunner(const Config& config) {
  SetUpLogging(StrCat("runner ", config.model_folder.filename().string()), config.log_level);
  // Sent to all of the terminal's or the service's processes, they are for the daemon, which may
  // still have streams to end.
  signal(SIGINT, SIG_IGN);
  signal(SIGTERM, SIG_IGN);
  const absl::Status status =
      ServeRunner(STDIN_FILENO,
                  {.load = [&] { return MakeRunner(config.model_folder, RunnerOptionsOf(config)); },
                   .check_device = [&] { return CheckDeviceWorks(config.device); }});
  if (status.ok()) return 0;
  spdlog::error("the runner can't go on: {}", status.ToString());
  return 1;
}

}  // namespace nibble
