#include "server/ops/config.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "quant/base/strings.h"

namespace nibble {
namespace {

constexpr char kExamples[] = R"(
Examples:
  nibbled --data-root /var/lib/nibble
  nibbled --data-root ./data --listen 0.0.0.0:8500 --metrics-listen 0.0.0.0:9500
  nibbled --data-root ./data --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0
  nibbled --data-root ./data --devices cuda:0,cuda:1

The data root holds models/NAME (Hugging Face folders), corpora/FILE (.txt, .jsonl),
artifacts (what jobs write) and nibble.db. Once it serves, nibbled prints one line:
  listening grpc=ADDRESS:PORT metrics=ADDRESS:PORT
SIGTERM and SIGINT stop it; a job that runs goes back to the queue.)";

// Throws CLI::ValidationError.
std::vector<Device> ParseDevices(const std::vector<std::string>& names) {
  std::vector<Device> devices;
  for (const std::string& name : names) {
    const absl::StatusOr<Device> device = ParseDevice(name);
    if (!device.ok()) {
      throw CLI::ValidationError("--devices", std::string(device.status().message()));
    }
    if (device->is_cuda() && std::count(devices.begin(), devices.end(), *device) > 0) {
      throw CLI::ValidationError("--devices", StrCat("found ", name, " twice, expected it once"));
    }
    devices.push_back(*device);
  }
  return devices;
}

void AddOptions(CLI::App& app, Config& config) {
  app.add_option("--data-root", config.root.folder, "Folder of models, corpora, artifacts, jobs")
      ->required()
      ->type_name("DIR");
  app.add_option("--listen", config.listen, "gRPC address; port 0: any free one")
      ->capture_default_str()
      ->type_name("HOST:PORT");
  app.add_option("--metrics-listen", config.metrics_listen,
                 "HTTP address of Prometheus metrics; port 0: any free one")
      ->capture_default_str()
      ->type_name("HOST:PORT");
  app.add_option("--serve-threads", config.serve_threads,
                 "CPU threads of inference; 0: as many as there are CPUs")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  app.add_option_function<std::vector<std::string>>(
         "--devices", [&config](const auto& names) { config.devices = ParseDevices(names); },
         "Devices of the job workers, a worker process each: cpu, cuda:0, cuda:1, ...; a GPU once, "
         "cpu as often as jobs are to run beside each other; default cpu")
      ->delimiter(',')
      ->type_name("LIST");
  app.add_option("--worker-threads", config.worker_threads,
                 "CPU threads of the job workers, split among them; 0: as many as there are CPUs")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  app.add_option("--kv-bytes", config.kv_bytes, "KV cache of each loaded model, in bytes")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1} << 20, int64_t{1} << 50));
  app.add_option("--quota-bytes", config.quota_bytes,
                 "Bytes that uploads may fill the data root to; 0: no limit")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{0}, INT64_MAX));
  app.add_option("--keepalive-seconds", config.keepalive_seconds,
                 "A client that is silent so long is asked for a sign, and given up after as long")
      ->capture_default_str()
      ->check(CLI::Range(1, 3600));
  app.add_option("--log-level", config.log_level, "Least level that is logged")
      ->capture_default_str()
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}));
}

}  // namespace

std::variant<Config, int> ParseCommandLine(int argc, char** argv) {
  Config config;
  CLI::App app{"nibbled quantizes language models as jobs and serves them, over gRPC.", "nibbled"};
  app.footer(kExamples);
  AddOptions(app, config);
  // The daemon starts this role by itself; it speaks over its standard input.
  CLI::App* worker = app.add_subcommand("worker")->group("");
  worker->add_option("--name", config.worker_name);
  worker->fallthrough();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  if (worker->parsed()) config.role = Config::Role::kWorker;
  return config;
}

}  // namespace nibble
