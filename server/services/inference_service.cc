#include "server/services/inference_service.h"

#include "server/services/generate.h"
#include "server/services/not_served.h"

namespace nibble {
InferenceService::InferenceService(Registry& registry, Metrics& metrics)
    : registry_(registry), metrics_(metrics) {}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return StartGenerate(context, request, registry_, metrics_, tasks_);
}

grpc::ServerUnaryReactor* InferenceService::Score(grpc::CallbackServerContext* context,
                                                  const v1::ScoreRequest*, v1::ScoreResponse*) {
  return UnaryNotServed(context, metrics_, "Score");
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest*,
                                                     v1::TokenizeResponse*) {
  return UnaryNotServed(context, metrics_, "Tokenize");
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest*,
                                                       v1::DetokenizeResponse*) {
  return UnaryNotServed(context, metrics_, "Detokenize");
}

}  // namespace nibble
