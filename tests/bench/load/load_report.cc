#include "tests/bench/load/load_report.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"

namespace nibble {
namespace {

std::string Cell(const Percentiles& ms) {
  return absl::StrFormat("%.2f / %.2f / %.2f", ms.p50, ms.p95, ms.p99);
}

nlohmann::json Json(const Percentiles& ms) {
  return {{"p50", ms.p50}, {"p95", ms.p95}, {"p99", ms.p99}};
}

}  // namespace

std::string LoadName(const LoadPoint& point) {
  return point.concurrency > 0 ? absl::StrFormat("%d at once", point.concurrency)
                               : absl::StrFormat("%g a second", point.rate);
}

std::string TableHeader() {
  return "| by | mix | load | requests | tokens/s | first token ms p50 / p95 / p99 "
         "| inter-token ms p50 / p95 / p99 | CPU us a token |\n"
         "|---|---|---|---|---|---|---|---|\n";
}

std::string TableLine(const LoadPoint& point) {
  const LoadResult& result = point.result;
  return absl::StrFormat(
      "| %s | %s | %s | %d | %.1f | %s | %s | %s |\n", point.bench, MixName(point.mix),
      LoadName(point), result.requests, result.tokens_per_second, Cell(result.first_token_ms),
      Cell(result.inter_token_ms),
      point.processor_us_per_token > 0 ? absl::StrFormat("%.1f", point.processor_us_per_token)
                                       : "");
}

std::string JsonLine(const LoadPoint& point) {
  const LoadResult& result = point.result;
  const nlohmann::json json = {{"bench", point.bench},
                               {"model", point.model},
                               {"mix", MixName(point.mix)},
                               {"concurrency", point.concurrency},
                               {"rate", point.rate},
                               {"requests", result.requests},
                               {"output_tokens", result.output_tokens},
                               {"seconds", result.seconds},
                               {"tokens_per_second", result.tokens_per_second},
                               {"first_token_ms", Json(result.first_token_ms)},
                               {"inter_token_ms", Json(result.inter_token_ms)},
                               {"processor_us_per_token", point.processor_us_per_token}};
  return json.dump() + "\n";
}

}  // namespace nibble
