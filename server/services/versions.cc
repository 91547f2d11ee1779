#include "server/services/versions.h"

#include "quant/base/strings.h"
#include "server/ops/names.h"

namespace nibble {
namespace {

constexpr size_t kLongestRequestId = 128;

}  // namespace

absl::Status CheckVersion(int64_t version) {
  if (version == 0 || version == 1) return absl::OkStatus();
  return FieldError(absl::StatusCode::kNotFound, "version", StrCat(version), "0 or 1");
}

absl::Status CheckRequestId(std::string_view request_id) {
  if (request_id.size() <= kLongestRequestId) return absl::OkStatus();
  return FieldError(absl::StatusCode::kInvalidArgument, "request_id",
                    StrCat(request_id.size(), " bytes"), StrCat("at most ", kLongestRequestId));
}

}  // namespace nibble
