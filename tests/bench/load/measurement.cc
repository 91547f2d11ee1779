#include "tests/bench/load/measurement.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

Percentiles MakePercentiles(const std::vector<double>& values) {
  return {Percentile(values, 50), Percentile(values, 95), Percentile(values, 99)};
}

}  // namespace

double Percentile(std::vector<double> values, double percent) {
  if (values.empty()) return 0;
  const double rank = std::ceil(percent / 100 * static_cast<double>(values.size()));
  const auto nth = values.begin() + std::max<int64_t>(static_cast<int64_t>(rank) - 1, 0);
  std::ranges::nth_element(values, nth);
  return *nth;
}

LoadResult Measure(absl::Span<const RequestTrace> traces) {
  LoadResult result;
  std::vector<double> first;
  std::vector<double> gaps;
  absl::Time begin = absl::InfiniteFuture();
  absl::Time end = absl::InfinitePast();
  for (const RequestTrace& trace : traces) {
    if (trace.tokens.empty()) continue;
    ++result.requests;
    result.output_tokens += static_cast<int64_t>(trace.tokens.size());
    first.push_back(absl::ToDoubleMilliseconds(trace.tokens.front() - trace.due));
    for (size_t i = 1; i < trace.tokens.size(); ++i) {
      gaps.push_back(absl::ToDoubleMilliseconds(trace.tokens[i] - trace.tokens[i - 1]));
    }
    begin = std::min(begin, trace.due);
    end = std::max(end, trace.tokens.back());
  }
  if (result.requests == 0) return result;
  result.seconds = absl::ToDoubleSeconds(end - begin);
  result.tokens_per_second = static_cast<double>(result.output_tokens) / result.seconds;
  result.first_token_ms = MakePercentiles(first);
  result.inter_token_ms = MakePercentiles(gaps);
  return result;
}

}  // namespace nibble
