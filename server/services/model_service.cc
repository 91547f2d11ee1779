#include "server/services/model_service.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/ops/grpc_status.h"
#include "server/services/corpora.h"
#include "server/services/download.h"
#include "server/services/model_messages.h"
#include "server/services/pages.h"
#include "server/services/upload.h"
#include "server/services/versions.h"

namespace nibble {
namespace {

absl::Status CheckFilters(const v1::ListModelsRequest& request) {
  if (!v1::ModelKind_IsValid(request.kind())) {
    return FieldError(absl::StatusCode::kInvalidArgument, "kind", StrCat(request.kind()),
                      "a value of the API");
  }
  for (const int state : request.states()) {
    if (state >= 1 && v1::ModelState_IsValid(state)) continue;
    return FieldError(absl::StatusCode::kInvalidArgument, "states", StrCat(state),
                      "states of a model");
  }
  return absl::OkStatus();
}

bool IsAskedFor(const v1::ModelVersion& version, const v1::ListModelsRequest& request) {
  if (request.kind() != v1::MODEL_KIND_UNSPECIFIED && request.kind() != version.kind()) {
    return false;
  }
  const auto& states = request.states();
  return states.empty() || std::ranges::find(states, version.state()) != states.end();
}

absl::StatusOr<std::optional<Compute>> CheckLoad(const v1::LoadOptions& options) {
  const auto refuse = [](std::string_view field) {
    return FieldError(absl::StatusCode::kUnimplemented, field, "a value",
                      "none: it is not served by this version");
  };
  if (!v1::Compute_IsValid(options.compute()) ||
      !v1::KvCacheFormat_IsValid(options.kv_cache_format())) {
    return FieldError(
        absl::StatusCode::kInvalidArgument, "options",
        StrCat("compute ", options.compute(), ", kv_cache_format ", options.kv_cache_format()),
        "values of the API");
  }
  if (options.kv_cache_format() == v1::KV_CACHE_FORMAT_E4M3)
    return refuse("options.kv_cache_format");
  if (options.has_kv_cache_bytes()) return refuse("options.kv_cache_bytes");
  if (options.has_max_context_tokens()) return refuse("options.max_context_tokens");
  if (options.compute() == v1::COMPUTE_UNSPECIFIED) return std::nullopt;
  return options.compute() == v1::COMPUTE_F32 ? Compute::kF32 : Compute::kBf16;
}

// Of a folder that will be listed.
absl::Status CheckShown(const std::filesystem::path& path) {
  NIBBLE_ASSIGN_OR_RETURN(const ModelFolder folder, ReadModelFolder(path));
  return ModelMessage(folder, {}, /*report=*/true).status();
}

}  // namespace

ModelService::ModelService(Registry& registry, JobStore& jobs, absl::Mutex& names,
                           int64_t quota_bytes, Metrics& metrics)
    : registry_(registry),
      jobs_(jobs),
      names_(names),
      metrics_(metrics),
      uploads_({.root = registry.root(),
                .quota_bytes = quota_bytes,
                .check_free = [this](const std::string& name) { return CheckNoJob(name); },
                .check_model = CheckShown},
               names) {}

absl::Status ModelService::CheckNoJob(const std::string& name) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string job, jobs_.LiveJobOf(name));
  if (job.empty()) return absl::OkStatus();
  return FieldError(absl::StatusCode::kAlreadyExists, "model",
                    StrCat("\"", name, "\", which ", job, " works on"), "a name that is free");
}

grpc::ServerUnaryReactor* ModelService::Start(grpc::CallbackServerContext* context,
                                              const char* method,
                                              std::function<void(Finish)> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  auto timer = std::make_shared<RpcTimer>(metrics_, method);
  folders_.Run([reactor, timer, work = std::move(work)] {
    work([reactor, timer](const absl::Status& status) {
      reactor->Finish(timer->Done(ToGrpcStatus(status)));
    });
  });
  return reactor;
}

grpc::ServerUnaryReactor* ModelService::Answer(grpc::CallbackServerContext* context,
                                               const char* method,
                                               std::function<absl::Status()> work) {
  return Start(context, method, [work = std::move(work)](const Finish& finish) { finish(work()); });
}

absl::Status ModelService::Get(const std::string& name, bool report, v1::Model& response) {
  NIBBLE_ASSIGN_OR_RETURN(const std::filesystem::path path,
                          FindModel(registry_.root(), "name", name));
  NIBBLE_ASSIGN_OR_RETURN(const ModelFolder folder, ReadModelFolder(path));
  NIBBLE_ASSIGN_OR_RETURN(response, ModelMessage(folder, registry_.StatusOf(name), report));
  NIBBLE_ASSIGN_OR_RETURN(*response.mutable_versions(0)->mutable_job_id(), jobs_.MakerOf(name));
  return absl::OkStatus();
}

absl::Status ModelService::List(const v1::ListModelsRequest& request,
                                v1::ListModelsResponse& response) {
  NIBBLE_RETURN_IF_ERROR(CheckFilters(request));
  NIBBLE_ASSIGN_OR_RETURN(const NamePage page, ParsePage(request.page()));
  std::map<std::string, std::string> unreadable;
  for (const ModelFolder& folder : ListModelFolders(registry_.root(), &unreadable)) {
    absl::StatusOr<v1::Model> model = ModelMessage(folder, registry_.StatusOf(folder.name), false);
    if (!model.ok()) {
      unreadable.emplace(folder.name, model.status().message());
      continue;
    }
    if (folder.name <= page.after || !IsAskedFor(model->versions(0), request)) continue;
    if (response.models_size() == page.size) {
      response.set_next_page_token(PageToken(response.models(page.size - 1).name()));
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(*model->mutable_versions(0)->mutable_job_id(),
                            jobs_.MakerOf(folder.name));
    *response.add_models() = *std::move(model);
  }
  warnings_.Tell(unreadable);
  return absl::OkStatus();
}

absl::Status ModelService::Delete(const std::string& name) {
  absl::MutexLock lock(&names_);
  NIBBLE_RETURN_IF_ERROR(FindModel(registry_.root(), "name", name).status());
  NIBBLE_ASSIGN_OR_RETURN(const std::string job, jobs_.LiveJobOf(name));
  if (!job.empty()) {
    return FieldError(absl::StatusCode::kFailedPrecondition, "name",
                      StrCat("\"", name, "\", which ", job, " reads"),
                      "a model that no unfinished job reads");
  }
  return registry_.Delete(name);
}

grpc::ServerUnaryReactor* ModelService::ListModels(grpc::CallbackServerContext* context,
                                                   const v1::ListModelsRequest* request,
                                                   v1::ListModelsResponse* response) {
  return Answer(context, "ListModels", [=, this] { return List(*request, *response); });
}

grpc::ServerUnaryReactor* ModelService::GetModel(grpc::CallbackServerContext* context,
                                                 const v1::GetModelRequest* request,
                                                 v1::Model* response) {
  return Answer(context, "GetModel", [=, this]() -> absl::Status {
    NIBBLE_RETURN_IF_ERROR(CheckVersion(request->version()));
    return Get(request->name(), request->include_report(), *response);
  });
}

grpc::ServerUnaryReactor* ModelService::LoadModel(grpc::CallbackServerContext* context,
                                                  const v1::LoadModelRequest* request,
                                                  v1::Model* response) {
  return Start(context, "LoadModel", [=, this](Finish finish) {
    if (absl::Status status = CheckVersion(request->version()); !status.ok()) return finish(status);
    const absl::StatusOr<std::optional<Compute>> compute = CheckLoad(request->options());
    if (!compute.ok()) return finish(compute.status());
    registry_.Acquire(
        request->name(), *compute, Keep::kStay,
        [=, this](const absl::StatusOr<ModelHandle>& model) {
          finish(model.ok() ? Get(request->name(), false, *response) : model.status());
        });
  });
}

grpc::ServerUnaryReactor* ModelService::UnloadModel(grpc::CallbackServerContext* context,
                                                    const v1::UnloadModelRequest* request,
                                                    v1::Model* response) {
  return Start(context, "UnloadModel", [=, this](Finish finish) {
    if (absl::Status status = CheckVersion(request->version()); !status.ok()) return finish(status);
    if (request->force()) {
      return finish(FieldError(absl::StatusCode::kUnimplemented, "force", "true",
                               "false: requests in flight end by themselves"));
    }
    registry_.Unload(request->name(), [=, this](const absl::Status& status) {
      finish(status.ok() ? Get(request->name(), false, *response) : status);
    });
  });
}

grpc::ServerUnaryReactor* ModelService::DeleteModel(grpc::CallbackServerContext* context,
                                                    const v1::DeleteModelRequest* request,
                                                    v1::DeleteModelResponse*) {
  return Answer(context, "DeleteModel", [=, this]() -> absl::Status {
    NIBBLE_RETURN_IF_ERROR(CheckVersion(request->version()));
    return Delete(request->name());
  });
}

grpc::ServerReadReactor<v1::UploadRequest>* ModelService::Upload(grpc::CallbackServerContext*,
                                                                 v1::UploadResponse* response) {
  return StartUpload(response, uploads_, metrics_, transfers_);
}

grpc::ServerWriteReactor<v1::DownloadResponse>* ModelService::Download(
    grpc::CallbackServerContext*, const v1::DownloadRequest* request) {
  return StartDownload(*request, registry_.root(), metrics_, transfers_);
}

grpc::ServerUnaryReactor* ModelService::ListCorpora(grpc::CallbackServerContext* context,
                                                    const v1::ListCorporaRequest* request,
                                                    v1::ListCorporaResponse* response) {
  return Answer(context, "ListCorpora",
                [=, this] { return nibble::ListCorpora(registry_.root(), *request, *response); });
}

grpc::ServerUnaryReactor* ModelService::DeleteCorpus(grpc::CallbackServerContext* context,
                                                     const v1::DeleteCorpusRequest* request,
                                                     v1::DeleteCorpusResponse*) {
  return Answer(context, "DeleteCorpus", [=, this] {
    absl::MutexLock lock(&names_);
    return nibble::DeleteCorpus(registry_.root(), jobs_, request->name());
  });
}

}  // namespace nibble
