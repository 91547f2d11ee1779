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
  nibbled --data-root ./data --device cuda:0 --kv-format e4m3 --devices cuda:1

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

// Throws CLI::ValidationError.
Device ParseOneDevice(const std::string& name) {
  const absl::StatusOr<Device> device = ParseDevice(name);
  if (!device.ok()) throw CLI::ValidationError("--device", std::string(device.status().message()));
  return *device;
}

// Of a loaded model.
void AddRunnerOptions(CLI::App& app, Config& config) {
  app.add_option_function<std::string>(
         "--device", [&config](const auto& name) { config.device = ParseOneDevice(name); },
         "Device of inference: cpu, cuda:0, cuda:1, ...; default cpu")
      ->type_name("DEVICE");
  app.add_option_function<std::string>(
         "--runner",
         [&config](const auto& place) {
           config.runner = place == "process" ? Config::Runner::kProcess : Config::Runner::kInline;
         },
         "Where a loaded model is: in a process of its own, started again when it dies, or in the "
         "daemon's; default inline on a CPU; always process on a GPU")
      ->check(CLI::IsMember({"process", "inline"}));
  app.add_option("--kv-bytes", config.kv_bytes,
                 "KV cache of each loaded model, in bytes; default 1 GiB on a CPU, on a GPU what "
                 "--gpu-memory-fraction leaves")
      ->check(CLI::Range(int64_t{1} << 20, int64_t{1} << 50));
  app.add_option("--gpu-memory-fraction", config.gpu_memory_fraction,
                 "Part of the GPU's memory that each loaded model may fill, KV cache included")
      ->capture_default_str()
      ->check(CLI::Range(0.01, 1.0));
  app.add_option_function<std::string>(
         "--kv-format",
         [&config](const auto& format) {
           config.kv_format = format == "e4m3" ? KvFormat::kE4M3 : KvFormat::kBf16;
         },
         "KV cache of a GPU: bf16, or e4m3, which holds twice the tokens; default bf16")
      ->check(CLI::IsMember({"bf16", "e4m3"}));
}

// Once all is parsed. Throws CLI::ValidationError.
void SettleRunner(const CLI::App& app, Config& config) {
  const std::string device = DeviceName(config.device);
  if (!config.device.is_cuda()) {
    if (config.kv_format == KvFormat::kBf16) return;
    throw CLI::ValidationError("--kv-format",
                               StrCat("found e4m3 with --device ", device, ", expected bf16"));
  }
  if (app.count("--runner") > 0 && config.runner == Config::Runner::kInline) {
    throw CLI::ValidationError("--runner",
                               StrCat("found inline with --device ", device, ", expected process"));
  }
  config.runner = Config::Runner::kProcess;
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
  AddRunnerOptions(app, config);
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
  // The daemon starts these roles by itself; they speak over their standard input.
  CLI::App* worker = app.add_subcommand("worker")->group("");
  worker->add_option("--name", config.worker_name);
  worker->fallthrough();
  CLI::App* runner = app.add_subcommand("runner")->group("");
  runner->add_option("--folder", config.model_folder);
  runner->add_flag("--f32", [&config](int64_t) { config.compute = Compute::kF32; });
  runner->fallthrough();
  try {
    app.parse(argc, argv);
    SettleRunner(app, config);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  if (worker->parsed()) config.role = Config::Role::kWorker;
  if (runner->parsed()) config.role = Config::Role::kRunner;
  return config;
}

}  // namespace nibble
