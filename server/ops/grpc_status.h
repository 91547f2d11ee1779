#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace nibble {

// The same code and message; a message over 2 KiB is cut, since it travels as a header.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace nibble
