// The role `all`: the API and the supervised workers, put together and taken apart in order.
#pragma once

#include <grpcpp/server.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/jobs/job_notifier.h"
#include "server/jobs/job_store.h"
#include "server/jobs/worker_pool.h"
#include "server/ops/config.h"
#include "server/ops/data_root_lock.h"
#include "server/ops/metrics.h"
#include "server/registry/registry.h"
#include "server/services/evaluation_service.h"
#include "server/services/inference_service.h"
#include "server/services/model_service.h"
#include "server/services/quantization_service.h"

namespace nibble {

class Daemon {
 public:
  // Serves when it returns. FAILED_PRECONDITION or UNAVAILABLE with the flag at fault when the data
  // root is in use or an address can't be opened.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const Config& config);
  // Refuses new RPCs, ends the streams, puts the workers' jobs back in the queue.
  ~Daemon();
  // "listening grpc=HOST:PORT metrics=HOST:PORT", with the ports that were bound.
  std::string Addresses() const;

 private:
  struct NamedService {
    grpc::Service* service;
    const char* name;  // for its health
  };

  Daemon(const Config& config, DataRootLock lock, std::unique_ptr<JobStore> store);
  WorkerSupervisor::Options WorkerOptions(size_t number);
  absl::Status StartWorkers();
  absl::StatusOr<Resources> WorkerResources() const;
  absl::Status StartMetrics();
  absl::Status StartServer();
  std::vector<NamedService> Services();
  void CountJobs();
  void CountEngines();

  const Config config_;
  const DataRootLock lock_;
  absl::Mutex names_;  // held while a name is checked and then taken or freed
  Metrics metrics_;
  const std::unique_ptr<JobStore> store_;
  JobNotifier notifier_;
  std::unique_ptr<WorkerPool> workers_;
  Registry registry_;
  QuantizationService quantization_;
  ModelService models_;
  InferenceService inference_;
  EvaluationService evaluation_;
  // At the last scrape; scrapes come one at a time.
  std::map<std::string, EngineStats> counted_engines_;
  std::unique_ptr<MetricsServer> metrics_server_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace nibble
