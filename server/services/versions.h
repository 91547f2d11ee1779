// Versions and request ids, as every request has them.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"

namespace nibble {

// A model of the data root has one version. NOT_FOUND for another than 0 and 1.
absl::Status CheckVersion(int64_t version);
// INVALID_ARGUMENT for more than 128 bytes.
absl::Status CheckRequestId(std::string_view request_id);

}  // namespace nibble
