// nibbled: quantizes models as jobs and serves them. One binary with roles (see Config).
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <variant>

#include "quant/base/strings.h"
#include "server/daemon.h"
#include "server/jobs/worker.h"
#include "server/ops/config.h"
#include "server/ops/logging.h"
#include "server/ops/signals.h"
#include "server/runners.h"

namespace nibble {
namespace {

// LibTorch reads its number of threads when it is loaded, before main: start again with it set.
void ApplyServeThreads(const Config& config, char** argv) {
  const char* current = std::getenv("OMP_NUM_THREADS");
  const std::string wanted = StrCat(config.serve_threads);
  if (config.serve_threads == 0 || (current != nullptr && current == wanted)) return;
  setenv("OMP_NUM_THREADS", wanted.c_str(), 1);
  execv("/proc/self/exe", argv);
  spdlog::error("can't start again with {} threads: {}", wanted, std::strerror(errno));
  std::exit(1);
}

int RunAll(const Config& config) {
  SetUpLogging("nibbled", config.log_level);
  const StopSignals signals;
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(config);
  if (!daemon.ok()) {
    spdlog::error("can't start: {}", daemon.status().ToString());
    return 1;
  }
  std::printf("%s\n", (*daemon)->Addresses().c_str());
  std::fflush(stdout);
  spdlog::info("stopping by signal {}", signals.Wait());
  daemon->reset();
  spdlog::info("stopped");
  return 0;
}

int RunAsWorker(const Config& config) {
  SetUpLogging(StrCat("worker ", config.worker_name), config.log_level);
  const absl::Status status = RunWorker(config.root, config.worker_name, config.devices.front());
  if (status.ok()) return 0;
  spdlog::error("the worker can't go on: {}", status.ToString());
  return 1;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  const auto parsed = nibble::ParseCommandLine(argc, argv);
  if (const int* code = std::get_if<int>(&parsed)) return *code;
  const auto& config = std::get<nibble::Config>(parsed);
  if (config.role == nibble::Config::Role::kWorker) return nibble::RunAsWorker(config);
  // With the daemon's threads: its environment is the runner's.
  if (config.role == nibble::Config::Role::kRunner) return nibble::RunAsRunner(config);
  nibble::ApplyServeThreads(config, argv);
  return nibble::RunAll(config);
}
