#pragma once

#include <functional>

#include "nibble/v1/inference.grpc.pb.h"
#include "server/ops/metrics.h"
#include "server/ops/task_thread.h"
#include "server/registry/registry.h"

namespace nibble {

// Thread-safe; everything given outlives it.
class InferenceService : public v1::InferenceService::CallbackService {
 public:
  InferenceService(Registry& registry, Metrics& metrics);

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;

 private:
  // Answers on `tasks_`.
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const char* method,
                                   std::function<absl::Status()> work);

  Registry& registry_;
  Metrics& metrics_;
  TaskThread tasks_;  // tokenizing and loading: not for an RPC thread
};

}  // namespace nibble
