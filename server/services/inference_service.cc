#include "server/services/inference_service.h"

#include <memory>
#include <utility>

#include "server/ops/grpc_status.h"
#include "server/services/generate.h"
#include "server/services/score.h"
#include "server/services/tokens.h"

namespace nibble {
InferenceService::InferenceService(Registry& registry, Metrics& metrics)
    : registry_(registry), metrics_(metrics) {}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  return StartGenerate(context, request, registry_, metrics_, tasks_);
}

grpc::ServerUnaryReactor* InferenceService::Score(grpc::CallbackServerContext* context,
                                                  const v1::ScoreRequest* request,
                                                  v1::ScoreResponse* response) {
  return StartScore(context, request, response, registry_, metrics_, tasks_);
}

grpc::ServerUnaryReactor* InferenceService::Answer(grpc::CallbackServerContext* context,
                                                   const char* method,
                                                   std::function<absl::Status()> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  auto timer = std::make_shared<RpcTimer>(metrics_, method);
  tasks_.Run([reactor, timer, work = std::move(work)] {
    reactor->Finish(timer->Done(ToGrpcStatus(work())));
  });
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  return Answer(context, "Tokenize",
                [=, this] { return nibble::Tokenize(registry_, *request, *response); });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  return Answer(context, "Detokenize",
                [=, this] { return nibble::Detokenize(registry_, *request, *response); });
}

}  // namespace nibble
