#include "server/services/inference_service.h"

#include "server/ops/grpc_status.h"
#include "server/services/generate.h"

namespace nibble {
namespace {

grpc::ServerUnaryReactor* NotServed(grpc::CallbackServerContext* context, Metrics& metrics,
                                    const char* method) {
  RpcTimer timer(metrics, method);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(timer.Done(
      {grpc::StatusCode::UNIMPLEMENTED, std::string(method) + " is not served by this version"}));
  return reactor;
}

}  // namespace

InferenceService::InferenceService(Registry& registry, Metrics& metrics)
    : registry_(registry), metrics_(metrics) {}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return StartGenerate(context, request, registry_, metrics_, tasks_);
}

grpc::ServerUnaryReactor* InferenceService::Score(grpc::CallbackServerContext* context,
                                                  const v1::ScoreRequest*, v1::ScoreResponse*) {
  return NotServed(context, metrics_, "Score");
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest*,
                                                     v1::TokenizeResponse*) {
  return NotServed(context, metrics_, "Tokenize");
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest*,
                                                       v1::DetokenizeResponse*) {
  return NotServed(context, metrics_, "Detokenize");
}

}  // namespace nibble
