#include "quant/kernels/plan/sampling.h"

#include <algorithm>
#include <numbers>
#include <string_view>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

absl::Status CheckRange(std::string_view field, double found, bool inside,
                        std::string_view expected) {
  if (inside) return absl::OkStatus();
  return absl::InvalidArgumentError(
      StrCat(field, ": found ", found, ", expected a number ", expected));
}

}  // namespace

absl::StatusOr<SamplingRow> MakeSamplingRow(const SamplingOptions& options) {
  const auto& [temperature, top_k, top_p, min_p, seed] = options;
  NIBBLE_RETURN_IF_ERROR(
      CheckRange("temperature", temperature, temperature >= 0 && temperature <= 100, "in 0..100"));
  NIBBLE_RETURN_IF_ERROR(CheckRange("top_k", top_k, top_k >= 0, "of at least 0"));
  NIBBLE_RETURN_IF_ERROR(
      CheckRange("top_p", top_p, top_p > 0 && top_p <= 1, "above 0 and up to 1"));
  NIBBLE_RETURN_IF_ERROR(CheckRange("min_p", min_p, min_p >= 0 && min_p <= 1, "in 0..1"));
  SamplingRow row;
  row.seed = seed;
  row.top_p = static_cast<uint64_t>(std::max(1.0, std::round(std::ldexp(double{top_p}, 32))));
  row.top_k = top_k;
  if (temperature > 0) {
    // Below about 1e-38 every token but the largest lies deeper than any weight.
    row.bits_per_logit =
        static_cast<float>(std::min(std::numbers::log2e / double{temperature}, 1e37));
  }
  if (min_p > 0) {
    const double depth = std::floor(std::ldexp(-std::log2(double{min_p}), kDepthFraction));
    row.min_p_depth = static_cast<uint32_t>(std::min<double>(depth, kDepthEnd));
  }
  return row;
}

}  // namespace nibble
