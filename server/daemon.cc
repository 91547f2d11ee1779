#include "server/daemon.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/kernels/device/devices.h"
#include "server/ops/resources.h"
#include "server/runners.h"

namespace nibble {
namespace {

// What unary calls may take to end when the daemon stops; streams are cancelled after it.
constexpr auto kShutdownGrace = std::chrono::seconds(2);

// Clients may ask for a sign as often.
constexpr auto kLeastPingInterval = std::chrono::seconds(5);

// A client whose machine or network is gone says nothing: it is asked after `silence` and given up
// after as long again, so that its streams hold nothing any more.
void KeepAlive(std::chrono::milliseconds silence, grpc::ServerBuilder& builder) {
  const auto milliseconds = static_cast<int>(silence.count());
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, milliseconds);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, milliseconds);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      static_cast<int>(std::chrono::milliseconds(kLeastPingInterval).count()));
}

std::string WithPort(const std::string& address, int port) {
  return StrCat(address.substr(0, address.rfind(':') + 1), port);
}

// This program again, as a worker.
std::vector<std::string> WorkerCommand(const Config& config, const std::string& name,
                                       const Device& device) {
  return {std::filesystem::read_symlink("/proc/self/exe").string(),
          "worker",
          "--name",
          name,
          "--devices",
          DeviceName(device),
          "--data-root",
          config.root.folder.string(),
          "--log-level",
          config.log_level};
}

// Of each worker.
int WorkerThreads(const Config& config) {
  const int all = config.worker_threads > 0 ? config.worker_threads
                                            : static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, all / static_cast<int>(config.devices.size()));
}

// One for each type of device.
std::vector<Place> Places(const Config& config) {
  std::vector<Place> places;
  for (const Device& device : config.devices) {
    const bool known = std::any_of(places.begin(), places.end(), [&](const Place& place) {
      return place.device.type == device.type;
    });
    if (!known) places.push_back({.device = device, .threads = WorkerThreads(config)});
  }
  return places;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const Config& config) {
  for (const Device& device : config.devices) NIBBLE_RETURN_IF_ERROR(CheckDevice(device));
  NIBBLE_RETURN_IF_ERROR(CheckDevice(config.device));
  NIBBLE_RETURN_IF_ERROR(CreateFolders(config.root));
  NIBBLE_ASSIGN_OR_RETURN(DataRootLock lock, DataRootLock::Take(config.root));
  NIBBLE_RETURN_IF_ERROR(SweepRemovedFolders(config.root));
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<JobStore> store, JobStore::Open(config.root.database()));
  auto daemon = std::unique_ptr<Daemon>(new Daemon(config, std::move(lock), std::move(store)));
  NIBBLE_RETURN_IF_ERROR(daemon->StartMetrics());
  NIBBLE_RETURN_IF_ERROR(daemon->StartWorkers());
  NIBBLE_RETURN_IF_ERROR(daemon->StartServer());
  return daemon;
}

Daemon::Daemon(const Config& config, DataRootLock lock, std::unique_ptr<JobStore> store)
    : config_(config),
      lock_(std::move(lock)),
      store_(std::move(store)),
      registry_({.root = config.root,
                 .runner = RunnerOptionsOf(config),
                 .make_runner = MakerOf(config, metrics_)}),
      quantization_({.root = config.root,
                     .places = Places(config),
                     .resources = [this] { return WorkerResources(); },
                     .wake_worker = [this] { workers_->Wake(); }},
                    *store_, names_, notifier_, metrics_),
      models_(registry_, *store_, names_, config.quota_bytes, metrics_),
      inference_(registry_, metrics_),
      evaluation_(registry_, metrics_) {}

Daemon::~Daemon() {
  // First, so that the workers leave their jobs while the calls end.
  if (workers_ != nullptr) workers_->Stop();
  if (server_ != nullptr) {
    server_->GetHealthCheckService()->Shutdown();
    server_->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
    server_->Wait();
  }
  // Scrapes read what goes next.
  metrics_server_.reset();
}

absl::Status Daemon::StartMetrics() {
  NIBBLE_ASSIGN_OR_RETURN(
      metrics_server_, MetricsServer::Start(config_.metrics_listen, metrics_,
                                            {[this] { CountJobs(); }, [this] { CountEngines(); }}));
  return absl::OkStatus();
}

std::vector<Daemon::NamedService> Daemon::Services() {
  return {{&quantization_, v1::QuantizationService::service_full_name()},
          {&models_, v1::ModelService::service_full_name()},
          {&inference_, v1::InferenceService::service_full_name()},
          {&evaluation_, v1::EvaluationService::service_full_name()}};
}

absl::Status Daemon::StartServer() {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  // Two daemons must not share a port unknowingly.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  KeepAlive(std::chrono::seconds(config_.keepalive_seconds), builder);
  builder.AddListeningPort(config_.listen, grpc::InsecureServerCredentials(), &port_);
  for (const NamedService& service : Services()) builder.RegisterService(service.service);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0) {
    return absl::UnavailableError(StrCat("can't listen for gRPC on ", config_.listen));
  }
  for (const NamedService& service : Services()) {
    server_->GetHealthCheckService()->SetServingStatus(service.name, true);
  }
  return absl::OkStatus();
}

WorkerSupervisor::Options Daemon::WorkerOptions(size_t number) {
  const Device& device = config_.devices[number];
  const prometheus::Labels labels = {{"device", DeviceName(device)}};
  WorkerSupervisor::Options options;
  options.name = StrCat(DeviceName(device), "/", number);
  options.command = WorkerCommand(config_, options.name, device);
  // LibTorch reads it when it is loaded.
  options.environment = {StrCat("OMP_NUM_THREADS=", WorkerThreads(config_))};
  options.artifacts = config_.root.artifacts();
  options.on_restart = [&restarts = metrics_.worker_restarts.Add(labels)] { restarts.Increment(); };
  options.on_layers = [&done = metrics_.layers_done.Add(labels)](int64_t layers) {
    done.Increment(static_cast<double>(layers));
  };
  options.log = [](std::string_view line) { spdlog::warn("{}", line); };
  return options;
}

absl::Status Daemon::StartWorkers() {
  std::vector<WorkerSupervisor::Options> workers;
  for (size_t number = 0; number < config_.devices.size(); ++number) {
    workers.push_back(WorkerOptions(number));
  }
  NIBBLE_ASSIGN_OR_RETURN(workers_, WorkerPool::Start(std::move(workers), *store_, notifier_));
  return absl::OkStatus();
}

absl::StatusOr<Resources> Daemon::WorkerResources() const {
  NIBBLE_ASSIGN_OR_RETURN(Resources resources, FindResources(config_.root.folder));
  resources.device_bytes = workers_->DeviceBytes();
  return resources;
}

void Daemon::CountJobs() {
  const auto counts = store_->CountByState();
  if (!counts.ok()) {
    spdlog::error("jobs can't be counted: {}", counts.status().ToString());
    return;
  }
  for (const auto& [state, count] : *counts) {
    metrics_.jobs.Add({{"state", std::string(JobStateName(state))}})
        .Set(static_cast<double>(count));
  }
  metrics_.queue_depth.Set(static_cast<double>(counts->at(JobState::kQueued)));
}

void Daemon::CountEngines() {
  std::map<std::string, EngineStats> counts;
  std::map<std::string, int64_t> weights;
  for (const ModelHandle& model : registry_.Loaded()) {
    counts[model->name] += model->engine->stats();
    weights[model->name] += model->engine->runner().weight_bytes();
  }
  // A model that has gone shows zeros.
  for (const auto& [name, stats] : counted_engines_) counts.try_emplace(name);
  for (const auto& [name, stats] : counts) {
    const prometheus::Labels labels = {{"model", name}};
    const auto set = [&](prometheus::Family<prometheus::Gauge>& family, int64_t value) {
      family.Add(labels).Set(static_cast<double>(value));
    };
    set(metrics_.requests_running, stats.running);
    set(metrics_.requests_waiting, stats.waiting);
    set(metrics_.kv_blocks_used, stats.kv_blocks_used);
    set(metrics_.kv_blocks_total, stats.kv_blocks_total);
    set(metrics_.weight_bytes, weights[name]);
    // An engine that was loaded anew counts from 0.
    EngineStats& before = counted_engines_[name];
    if (stats.steps < before.steps) before = {};
    const auto add = [&](prometheus::Family<prometheus::Counter>& family, int64_t delta) {
      family.Add(labels).Increment(static_cast<double>(delta));
    };
    add(metrics_.engine_steps, stats.steps - before.steps);
    add(metrics_.preemptions, stats.preemptions - before.preemptions);
    add(metrics_.prefix_cached_tokens, stats.cached_tokens - before.cached_tokens);
    before = stats;
  }
}

std::string Daemon::Addresses() const {
  return StrCat("listening grpc=", WithPort(config_.listen, port_),
                " metrics=", WithPort(config_.metrics_listen, metrics_server_->port()));
}

}  // namespace nibble
