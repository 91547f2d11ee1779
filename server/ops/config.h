// The daemon's command line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <variant>
#include <vector>

#include "quant/base/compute.h"
#include "quant/base/device.h"
#include "quant/base/kv_format.h"
#include "server/ops/names.h"

namespace nibble {

struct Config {
  enum class Role { kAll, kWorker, kRunner };
  // Where a loaded model is: in a process of its own, which may die without harm to others, or in
  // the daemon's.
  enum class Runner { kProcess, kInline };
  Role role = Role::kAll;
  DataRoot root;
  std::string listen = "127.0.0.1:8500";          // port 0: any free one
  std::string metrics_listen = "127.0.0.1:9500";  // port 0: any free one
  int serve_threads = 0;  // CPU threads of inference; 0: as many as there are CPUs
  std::vector<Device> devices = {Device{}};  // of the workers, one each
  int worker_threads = 0;                // CPU threads of all workers; 0: as many as there are CPUs
  Device device;                         // of inference
  Runner runner = Runner::kInline;       // on a GPU always kProcess
  int64_t kv_bytes = 0;                  // KV cache of each loaded model; 0: RunnerOptions' default
  double gpu_memory_fraction = 0.9;      // of the GPU, for each loaded model
  KvFormat kv_format = KvFormat::kBf16;  // kE4M3: on a GPU
  int64_t quota_bytes = 0;               // of the data root, for uploads; 0: none
  int keepalive_seconds = 20;            // a client that is silent so long is asked, then given up
  std::string log_level = "info";        // debug, info, warn, error
  std::string worker_name;               // of the role kWorker
  std::filesystem::path model_folder;    // of the role kRunner
  Compute compute = Compute::kBf16;      // of the role kRunner
};

// What the command line asks for: to run, or to end with an exit code, its text already printed.
std::variant<Config, int> ParseCommandLine(int argc, char** argv);

}  // namespace nibble
