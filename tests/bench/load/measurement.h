// What came of a load: latencies and throughput from the times of its tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"

namespace nibble {

struct RequestTrace {
  absl::Time due;  // when it should have begun, however late the generator was
  std::vector<absl::Time> tokens;
};

// The nearest rank: the smallest of the values that at least `percent` % of them do not exceed.
// 0 of no values.
double Percentile(std::vector<double> values, double percent);

struct Percentiles {
  double p50 = 0;
  double p95 = 0;
  double p99 = 0;
};

struct LoadResult {
  int64_t requests = 0;
  int64_t output_tokens = 0;
  double seconds = 0;  // from the first request's due time to the last token
  double tokens_per_second = 0;
  Percentiles first_token_ms;  // over requests, from their due time
  Percentiles inter_token_ms;  // over all gaps between a request's tokens
};

LoadResult Measure(absl::Span<const RequestTrace> traces);

}  // namespace nibble
