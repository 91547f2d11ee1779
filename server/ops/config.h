// The daemon's command line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "quant/base/device.h"
#include "server/ops/names.h"

namespace nibble {

struct Config {
  enum class Role { kAll, kWorker };
  Role role = Role::kAll;
  DataRoot root;
  std::string listen = "127.0.0.1:8500";          // port 0: any free one
  std::string metrics_listen = "127.0.0.1:9500";  // port 0: any free one
  int serve_threads = 0;  // CPU threads of inference; 0: as many as there are CPUs
  std::vector<Device> devices = {Device{}};  // of the workers, one each
  int worker_threads = 0;               // CPU threads of all workers; 0: as many as there are CPUs
  int64_t kv_bytes = int64_t{1} << 30;  // KV cache of each loaded model
  int64_t quota_bytes = 0;              // of the data root, for uploads; 0: none
  int keepalive_seconds = 20;           // a client that is silent so long is asked, then given up
  std::string log_level = "info";       // debug, info, warn, error
  std::string worker_name;              // of the role kWorker
};

// What the command line asks for: to run, or to end with an exit code, its text already printed.
std::variant<Config, int> ParseCommandLine(int argc, char** argv);

}  // namespace nibble
