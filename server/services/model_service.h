#pragma once

#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "nibble/v1/model.grpc.pb.h"
#include "server/jobs/job_store.h"
#include "server/ops/metrics.h"
#include "server/ops/task_thread.h"
#include "server/registry/model_folder.h"
#include "server/registry/registry.h"
#include "server/transfer/upload_store.h"

namespace nibble {

// Thread-safe; everything given outlives it.
class ModelService : public v1::ModelService::CallbackService {
 public:
  // `names` is held while a name is checked and then taken or freed. `quota_bytes` limits what
  // uploads may fill of the data root; 0: no limit.
  ModelService(Registry& registry, JobStore& jobs, absl::Mutex& names, int64_t quota_bytes,
               Metrics& metrics);

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

  grpc::ServerReadReactor<v1::UploadRequest>* Upload(grpc::CallbackServerContext* context,
                                                     v1::UploadResponse* response) override;
  grpc::ServerWriteReactor<v1::DownloadResponse>* Download(
      grpc::CallbackServerContext* context, const v1::DownloadRequest* request) override;
  grpc::ServerUnaryReactor* ListCorpora(grpc::CallbackServerContext* context,
                                        const v1::ListCorporaRequest* request,
                                        v1::ListCorporaResponse* response) override;
  grpc::ServerUnaryReactor* DeleteCorpus(grpc::CallbackServerContext* context,
                                         const v1::DeleteCorpusRequest* request,
                                         v1::DeleteCorpusResponse* response) override;

 private:
  using Finish = std::function<void(const absl::Status&)>;
  // Starts `work` on `folders_`, which calls its argument once, now or later.
  grpc::ServerUnaryReactor* Start(grpc::CallbackServerContext* context, const char* method,
                                  std::function<void(Finish)> work);
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const char* method,
                                   std::function<absl::Status()> work);
  absl::Status List(const v1::ListModelsRequest& request, v1::ListModelsResponse& response);
  absl::Status Get(const std::string& name, bool report, v1::Model& response);
  absl::Status CheckNoJob(const std::string& name);
  absl::Status Delete(const std::string& name) ABSL_LOCKS_EXCLUDED(names_);

  Registry& registry_;
  JobStore& jobs_;
  absl::Mutex& names_;
  Metrics& metrics_;
  UploadStore uploads_;
  UnreadableWarnings warnings_;  // used on `folders_` only
  TaskThread folders_;           // reads and removes them: not for an RPC thread
  TaskThread transfers_;         // writes and reads files of uploads and downloads
};

}  // namespace nibble
