// Puts a load on whoever answers requests, and notes when each token comes.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tests/bench/load/measurement.h"
#include "tests/bench/load/workload.h"

namespace nibble {

// Who answers: an engine in this process, or a daemon.
class LoadTarget {
 public:
  using OnTokens = std::function<void(int64_t count)>;
  using OnEnd = std::function<void(const absl::Status& status)>;
  virtual ~LoadTarget() = default;
  // Both are called by any thread, for one request one at a time; on_end once and last, by the
  // deadline or soon after it.
  virtual void Start(const LoadRequest& request, absl::Time deadline, OnTokens on_tokens,
                     OnEnd on_end) = 0;
  // Of the process that answers, so far.
  virtual absl::StatusOr<double> ProcessorSeconds() = 0;
};

struct LoadSchedule {
  int64_t concurrency = 0;               // closed loop: so many requests at all times
  std::vector<absl::Duration> arrivals;  // open loop: one for each request
  absl::Duration limit = absl::Minutes(10);
};

struct LoadProgress {
  int64_t ended = 0;
  int64_t requests = 0;
  int64_t tokens = 0;
  absl::Duration elapsed;
};

// In the order of the requests, all of which have ended. The first error of one of them ends the
// load; DEADLINE_EXCEEDED when schedule.limit passes. `tell` is called about once a second.
absl::StatusOr<std::vector<RequestTrace>> RunLoad(
    LoadTarget& target, const std::vector<LoadRequest>& requests, const LoadSchedule& schedule,
    const std::function<void(const LoadProgress&)>& tell);

}  // namespace nibble
