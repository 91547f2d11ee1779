// Everything that the daemon counts, under its Prometheus names, and the RAII helper by which every
// RPC handler counts itself.
#pragma once

#include <grpcpp/support/status.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace nibble {

// Thread-safe. A family is used as `metrics.x.Add({{"model", name}})`, which returns the same
// metric for the same labels.
struct Metrics {
  Metrics();

  const std::shared_ptr<prometheus::Registry> registry;

  prometheus::Family<prometheus::Counter>& rpcs;           // method, code
  prometheus::Family<prometheus::Histogram>& rpc_seconds;  // method; made by RpcSeconds

  prometheus::Family<prometheus::Gauge>& jobs;               // state
  prometheus::Gauge& queue_depth;                            // jobs QUEUED
  prometheus::Family<prometheus::Counter>& worker_restarts;  // device
  prometheus::Family<prometheus::Counter>& layers_done;      // device

  prometheus::Family<prometheus::Gauge>& requests_running;        // model
  prometheus::Family<prometheus::Gauge>& requests_waiting;        // model
  prometheus::Family<prometheus::Gauge>& kv_blocks_used;          // model
  prometheus::Family<prometheus::Gauge>& kv_blocks_total;         // model
  prometheus::Family<prometheus::Gauge>& weight_bytes;            // model
  prometheus::Family<prometheus::Counter>& prompt_tokens;         // model
  prometheus::Family<prometheus::Counter>& generated_tokens;      // model
  prometheus::Family<prometheus::Counter>& engine_steps;          // model
  prometheus::Family<prometheus::Counter>& preemptions;           // model
  prometheus::Family<prometheus::Counter>& runner_restarts;       // model
  prometheus::Family<prometheus::Counter>& prefix_cached_tokens;  // model
  // Submission to a request's first token, and between tokens. Made by the functions below.
  prometheus::Family<prometheus::Histogram>& first_token_seconds;  // model
  prometheus::Family<prometheus::Histogram>& next_token_seconds;   // model
  prometheus::Family<prometheus::Counter>& evaluated_windows;      // model

  prometheus::Histogram& RpcSeconds(std::string_view method);
  prometheus::Histogram& FirstTokenSeconds(std::string_view model);
  prometheus::Histogram& NextTokenSeconds(std::string_view model);
};

// Counts one RPC and its latency when it ends. Lives as long as the RPC: on the stack of a unary
// handler, as a member of a stream's reactor. An RPC that never says Done counts as CANCELLED.
class RpcTimer {
 public:
  RpcTimer(Metrics& metrics, std::string_view method);
  ~RpcTimer();
  RpcTimer(const RpcTimer&) = delete;
  RpcTimer& operator=(const RpcTimer&) = delete;
  // Notes how the RPC ended and passes the status through: `reactor->Finish(timer.Done(status))`.
  grpc::Status Done(grpc::Status status);

 private:
  Metrics& metrics_;
  const std::string method_;
  const absl::Time start_;
  grpc::StatusCode code_ = grpc::StatusCode::CANCELLED;
};

// The HTTP end of Metrics: GET /metrics. Gauges that mirror other state are set by the hooks, which
// run before each scrape.
class MetricsServer {
 public:
  // "host:port", port 0: any free one. UNAVAILABLE when the port can't be opened.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(
      const std::string& address, const Metrics& metrics,
      std::vector<std::function<void()>> before_scrape);
  int port() const { return port_; }

 private:
  MetricsServer() = default;
  std::shared_ptr<prometheus::Collectable> collectable_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  int port_ = 0;
};

}  // namespace nibble
