#include "server/jobs/admission.h"

#include <string>
#include <string_view>

#include "absl/strings/str_format.h"
#include "quant/base/status_macros.h"
#include "server/ops/names.h"

namespace nibble {
namespace {

std::string Gibibytes(int64_t bytes) {
  return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (int64_t{1} << 30));
}

absl::Status Check(std::string_view what, int64_t found, int64_t needed) {
  if (needed <= found) return absl::OkStatus();
  return FieldError(absl::StatusCode::kResourceExhausted, what, Gibibytes(found),
                    absl::StrFormat("at least %s for this job", Gibibytes(needed)));
}

}  // namespace

absl::Status CheckFits(const QuantizeEstimate& estimate, const Resources& resources) {
  NIBBLE_RETURN_IF_ERROR(Check("host memory", resources.memory_bytes, estimate.host_bytes));
  if (resources.device_bytes > 0) {
    NIBBLE_RETURN_IF_ERROR(Check("device memory", resources.device_bytes, estimate.device_bytes));
  }
  return Check("free disk", resources.disk_free_bytes, estimate.disk_bytes);
}

}  // namespace nibble
