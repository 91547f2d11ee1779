#pragma once

#include <functional>

#include "nibble/v1/model.grpc.pb.h"
#include "server/ops/metrics.h"
#include "server/ops/task_thread.h"
#include "server/registry/registry.h"

namespace nibble {

// Thread-safe; everything given outlives it.
class ModelService : public v1::ModelService::CallbackService {
 public:
  ModelService(Registry& registry, Metrics& metrics);

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::Model* response) override;
  grpc::ServerUnaryReactor* LoadModel(grpc::CallbackServerContext* context,
                                      const v1::LoadModelRequest* request,
                                      v1::Model* response) override;
  grpc::ServerUnaryReactor* UnloadModel(grpc::CallbackServerContext* context,
                                        const v1::UnloadModelRequest* request,
                                        v1::Model* response) override;
  grpc::ServerUnaryReactor* DeleteModel(grpc::CallbackServerContext* context,
                                        const v1::DeleteModelRequest* request,
                                        v1::DeleteModelResponse* response) override;

 private:
  // Answers on `thread`: folders are read and models loaded.
  grpc::ServerUnaryReactor* Answer(TaskThread& thread, grpc::CallbackServerContext* context,
                                   const char* method, std::function<absl::Status()> work);
  absl::Status List(const v1::ListModelsRequest& request, v1::ListModelsResponse& response);
  absl::Status Get(const std::string& name, v1::Model& response);

  Registry& registry_;
  Metrics& metrics_;
  TaskThread reads_;
  TaskThread changes_;  // loading may take minutes
};

}  // namespace nibble
