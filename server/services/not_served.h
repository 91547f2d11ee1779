// Reactors for RPCs of the API that this version does not serve: UNIMPLEMENTED, by name.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <string>

#include "server/ops/metrics.h"

namespace nibble {

inline grpc::Status NotServed(Metrics& metrics, const char* method) {
  RpcTimer timer(metrics, method);
  return timer.Done(
      {grpc::StatusCode::UNIMPLEMENTED, std::string(method) + " is not served by this version"});
}

inline grpc::ServerUnaryReactor* UnaryNotServed(grpc::CallbackServerContext* context,
                                                Metrics& metrics, const char* method) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(NotServed(metrics, method));
  return reactor;
}

}  // namespace nibble
