#include "server/ops/metrics.h"

#include <prometheus/collectable.h>

#include <exception>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using Buckets = prometheus::Histogram::BucketBoundaries;

// Seconds: from a cached unary call to an evaluation of an hour.
const Buckets& RpcBuckets() {
  static const auto* buckets =
      new Buckets{0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600};
  return *buckets;
}

// Seconds: from a GPU's decode step to a long prompt on a CPU.
const Buckets& TokenBuckets() {
  static const auto* buckets =
      new Buckets{0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30};
  return *buckets;
}

std::string_view CodeName(grpc::StatusCode code) {
  static constexpr std::string_view kNames[] = {"OK",
                                                "CANCELLED",
                                                "UNKNOWN",
                                                "INVALID_ARGUMENT",
                                                "DEADLINE_EXCEEDED",
                                                "NOT_FOUND",
                                                "ALREADY_EXISTS",
                                                "PERMISSION_DENIED",
                                                "RESOURCE_EXHAUSTED",
                                                "FAILED_PRECONDITION",
                                                "ABORTED",
                                                "OUT_OF_RANGE",
                                                "UNIMPLEMENTED",
                                                "INTERNAL",
                                                "UNAVAILABLE",
                                                "DATA_LOSS",
                                                "UNAUTHENTICATED"};
  return kNames[code];
}

// Runs the hooks, then collects the registry.
class HookedRegistry : public prometheus::Collectable {
 public:
  HookedRegistry(std::shared_ptr<prometheus::Registry> registry,
                 std::vector<std::function<void()>> hooks)
      : registry_(std::move(registry)), hooks_(std::move(hooks)) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    absl::MutexLock lock(&mutex_);
    for (const auto& hook : hooks_) hook();
    return registry_->Collect();
  }

 private:
  const std::shared_ptr<prometheus::Registry> registry_;
  const std::vector<std::function<void()>> hooks_;
  mutable absl::Mutex mutex_;  // hooks run one at a time
};

}  // namespace

Metrics::Metrics()
    : registry(std::make_shared<prometheus::Registry>()),
      rpcs(BuildCounter().Name("nibble_rpcs_total").Help("RPCs ended").Register(*registry)),
      rpc_seconds(BuildHistogram()
                      .Name("nibble_rpc_seconds")
                      .Help("Time from an RPC's start to its status")
                      .Register(*registry)),
      jobs(BuildGauge().Name("nibble_jobs").Help("Jobs by state").Register(*registry)),
      queue_depth(BuildGauge()
                      .Name("nibble_queue_depth")
                      .Help("Jobs that wait for a worker")
                      .Register(*registry)
                      .Add({})),
      worker_restarts(BuildCounter()
                          .Name("nibble_worker_restarts_total")
                          .Help("Times a worker process was started again")
                          .Register(*registry)),
      layers_done(BuildCounter()
                      .Name("nibble_layers_quantized_total")
                      .Help("Decoder layers quantized")
                      .Register(*registry)),
      requests_running(BuildGauge()
                           .Name("nibble_requests_running")
                           .Help("Sequences in the engine's batch")
                           .Register(*registry)),
      requests_waiting(BuildGauge()
                           .Name("nibble_requests_waiting")
                           .Help("Requests that wait for the engine")
                           .Register(*registry)),
      kv_blocks_used(BuildGauge()
                         .Name("nibble_kv_blocks_used")
                         .Help("KV cache blocks in use")
                         .Register(*registry)),
      kv_blocks_total(
          BuildGauge().Name("nibble_kv_blocks").Help("KV cache blocks").Register(*registry)),
      weight_bytes(BuildGauge()
                       .Name("nibble_model_weight_bytes")
                       .Help("Bytes of a loaded model's weights")
                       .Register(*registry)),
      prompt_tokens(BuildCounter()
                        .Name("nibble_prompt_tokens_total")
                        .Help("Prompt tokens computed")
                        .Register(*registry)),
      generated_tokens(BuildCounter()
                           .Name("nibble_generated_tokens_total")
                           .Help("Tokens generated")
                           .Register(*registry)),
      engine_steps(BuildCounter()
                       .Name("nibble_engine_steps_total")
                       .Help("Steps of the engine")
                       .Register(*registry)),
      preemptions(BuildCounter()
                      .Name("nibble_preemptions_total")
                      .Help("Sequences whose KV cache blocks were taken, to be computed again")
                      .Register(*registry)),
      runner_restarts(BuildCounter()
                          .Name("nibble_runner_restarts_total")
                          .Help("Times a model's runner process was started again")
                          .Register(*registry)),
      prefix_cached_tokens(BuildCounter()
                               .Name("nibble_prefix_cached_tokens_total")
                               .Help("Tokens found in the prefix cache instead of computed")
                               .Register(*registry)),
      first_token_seconds(BuildHistogram()
                              .Name("nibble_first_token_seconds")
                              .Help("Time from a request to its first token")
                              .Register(*registry)),
      next_token_seconds(BuildHistogram()
                             .Name("nibble_next_token_seconds")
                             .Help("Time between a request's tokens")
                             .Register(*registry)),
      evaluated_windows(BuildCounter()
                            .Name("nibble_evaluated_windows_total")
                            .Help("Windows scored by evaluations")
                            .Register(*registry)) {}

prometheus::Histogram& Metrics::RpcSeconds(std::string_view method) {
  return rpc_seconds.Add({{"method", std::string(method)}}, RpcBuckets());
}

prometheus::Histogram& Metrics::FirstTokenSeconds(std::string_view model) {
  return first_token_seconds.Add({{"model", std::string(model)}}, TokenBuckets());
}

prometheus::Histogram& Metrics::NextTokenSeconds(std::string_view model) {
  return next_token_seconds.Add({{"model", std::string(model)}}, TokenBuckets());
}

RpcTimer::RpcTimer(Metrics& metrics, std::string_view method)
    : metrics_(metrics), method_(method), start_(absl::Now()) {}

RpcTimer::~RpcTimer() {
  metrics_.rpcs.Add({{"method", method_}, {"code", std::string(CodeName(code_))}}).Increment();
  metrics_.RpcSeconds(method_).Observe(absl::ToDoubleSeconds(absl::Now() - start_));
}

grpc::Status RpcTimer::Done(grpc::Status status) {
  code_ = status.error_code();
  return status;
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const std::string& address, const Metrics& metrics,
    std::vector<std::function<void()>> before_scrape) {
  auto server = std::unique_ptr<MetricsServer>(new MetricsServer());
  server->collectable_ =
      std::make_shared<HookedRegistry>(metrics.registry, std::move(before_scrape));
  try {
    server->exposer_ = std::make_unique<prometheus::Exposer>(address);
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        StrCat("can't listen for metrics on ", address, ": ", error.what()));
  }
  server->exposer_->RegisterCollectable(server->collectable_);
  server->port_ = server->exposer_->GetListeningPorts().at(0);
  return server;
}

}  // namespace nibble
