#include "server/ops/grpc_status.h"

#include <string>

namespace nibble {
namespace {
constexpr size_t kLongestMessage = 2048;
}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string message(status.message().data(), status.message().size());
  if (message.size() > kLongestMessage) {
    message.resize(kLongestMessage);
    message += "... (cut)";
  }
  // absl's canonical codes are gRPC's.
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message);
}

}  // namespace nibble
