#include "server/services/model_service.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/ops/grpc_status.h"

namespace nibble {
namespace {

constexpr int kDefaultPage = 50;
constexpr int kLargestPage = 1000;

v1::Model ModelMessage(const ModelFolder& folder, const ModelStatus& status) {
  v1::Model message;
  message.set_name(folder.name);
  v1::ModelVersion& version = *message.add_versions();
  version.set_version(1);
  version.set_state(static_cast<v1::ModelState>(status.state));
  if (!status.failure.ok()) {
    version.mutable_failure()->set_code(status.failure.raw_code());
    version.mutable_failure()->set_message(std::string(status.failure.message()));
  }
  version.set_kind(folder.artifact ? v1::MODEL_KIND_ARTIFACT : v1::MODEL_KIND_CHECKPOINT);
  version.set_architecture(folder.config.family == Family::kOpt ? "opt" : "llama");
  version.set_parameters(folder.parameters);
  version.set_linear_bits_per_weight(folder.linear_bits_per_weight);
  version.set_model_bits_per_weight(folder.model_bits_per_weight);
  version.set_bytes(folder.bytes);
  version.set_layers(static_cast<int32_t>(folder.config.layers));
  version.set_hidden_size(static_cast<int32_t>(folder.config.hidden));
  version.set_vocabulary_size(static_cast<int32_t>(folder.config.vocab));
  version.set_context_tokens(static_cast<int32_t>(folder.config.context));
  version.set_has_chat_template(folder.has_chat_template);
  version.set_memory_bytes(status.memory_bytes);
  if (status.loaded_at)
    version.mutable_loaded_at()->set_seconds(absl::ToUnixSeconds(*status.loaded_at));
  return message;
}

absl::Status CheckVersion(int64_t version) {
  if (version == 0 || version == 1) return absl::OkStatus();
  return FieldError(absl::StatusCode::kNotFound, "version", StrCat(version), "0 or 1");
}

absl::StatusOr<std::optional<Compute>> CheckLoad(const v1::LoadOptions& options) {
  const auto refuse = [](std::string_view field) {
    return FieldError(absl::StatusCode::kUnimplemented, field, "a value",
                      "none: it is not served by this version");
  };
  if (options.kv_cache_format() == v1::KV_CACHE_FORMAT_E4M3)
    return refuse("options.kv_cache_format");
  if (options.has_kv_cache_bytes()) return refuse("options.kv_cache_bytes");
  if (options.has_max_context_tokens()) return refuse("options.max_context_tokens");
  if (options.compute() == v1::COMPUTE_UNSPECIFIED) return std::nullopt;
  return options.compute() == v1::COMPUTE_F32 ? Compute::kF32 : Compute::kBf16;
}

}  // namespace

ModelService::ModelService(Registry& registry, Metrics& metrics)
    : registry_(registry), metrics_(metrics) {}

grpc::ServerUnaryReactor* ModelService::Answer(TaskThread& thread,
                                               grpc::CallbackServerContext* context,
                                               const char* method,
                                               std::function<absl::Status()> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  auto timer = std::make_shared<RpcTimer>(metrics_, method);
  thread.Run([reactor, timer, work = std::move(work)] {
    reactor->Finish(timer->Done(ToGrpcStatus(work())));
  });
  return reactor;
}

absl::Status ModelService::Get(const std::string& name, v1::Model& response) {
  NIBBLE_ASSIGN_OR_RETURN(const std::filesystem::path path,
                          FindModel(registry_.root(), "name", name));
  NIBBLE_ASSIGN_OR_RETURN(const ModelFolder folder, ReadModelFolder(path));
  response = ModelMessage(folder, registry_.StatusOf(name));
  return absl::OkStatus();
}

absl::Status ModelService::List(const v1::ListModelsRequest& request,
                                v1::ListModelsResponse& response) {
  const int size = request.page().size() == 0 ? kDefaultPage : request.page().size();
  if (size < 0 || size > kLargestPage) {
    return FieldError(absl::StatusCode::kInvalidArgument, "page.size", StrCat(size),
                      StrCat("0 to ", kLargestPage));
  }
  std::vector<std::string> unreadable;
  for (const ModelFolder& folder : ListModelFolders(registry_.root(), &unreadable)) {
    // The token is the last name of the page before.
    if (folder.name <= request.page().token()) continue;
    v1::Model model = ModelMessage(folder, registry_.StatusOf(folder.name));
    const v1::ModelVersion& version = model.versions(0);
    if (request.kind() != v1::MODEL_KIND_UNSPECIFIED && request.kind() != version.kind()) continue;
    const auto& states = request.states();
    if (!states.empty() && std::ranges::find(states, version.state()) == states.end()) continue;
    if (response.models_size() == size) {
      response.set_next_page_token(response.models(size - 1).name());
      break;
    }
    *response.add_models() = std::move(model);
  }
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* ModelService::ListModels(grpc::CallbackServerContext* context,
                                                   const v1::ListModelsRequest* request,
                                                   v1::ListModelsResponse* response) {
  return Answer(reads_, context, "ListModels", [=, this] { return List(*request, *response); });
}

grpc::ServerUnaryReactor* ModelService::GetModel(grpc::CallbackServerContext* context,
                                                 const v1::GetModelRequest* request,
                                                 v1::Model* response) {
  return Answer(reads_, context, "GetModel", [=, this]() -> absl::Status {
    NIBBLE_RETURN_IF_ERROR(CheckVersion(request->version()));
    return Get(request->name(), *response);
  });
}

grpc::ServerUnaryReactor* ModelService::LoadModel(grpc::CallbackServerContext* context,
                                                  const v1::LoadModelRequest* request,
                                                  v1::Model* response) {
  return Answer(changes_, context, "LoadModel", [=, this]() -> absl::Status {
    NIBBLE_RETURN_IF_ERROR(CheckVersion(request->version()));
    NIBBLE_ASSIGN_OR_RETURN(const std::optional<Compute> compute, CheckLoad(request->options()));
    NIBBLE_RETURN_IF_ERROR(registry_.Acquire(request->name(), compute, Keep::kStay).status());
    return Get(request->name(), *response);
  });
}

grpc::ServerUnaryReactor* ModelService::UnloadModel(grpc::CallbackServerContext* context,
                                                    const v1::UnloadModelRequest* request,
                                                    v1::Model* response) {
  return Answer(changes_, context, "UnloadModel", [=, this]() -> absl::Status {
    NIBBLE_RETURN_IF_ERROR(CheckVersion(request->version()));
    if (request->force()) {
      return FieldError(absl::StatusCode::kUnimplemented, "force", "true",
                        "false: requests in flight end by themselves");
    }
    NIBBLE_RETURN_IF_ERROR(registry_.Unload(request->name()));
    return Get(request->name(), *response);
  });
}

grpc::ServerUnaryReactor* ModelService::DeleteModel(grpc::CallbackServerContext* context,
                                                    const v1::DeleteModelRequest* request,
                                                    v1::DeleteModelResponse*) {
  return Answer(changes_, context, "DeleteModel", [=, this]() -> absl::Status {
    NIBBLE_RETURN_IF_ERROR(CheckVersion(request->version()));
    return registry_.Delete(request->name());
  });
}

}  // namespace nibble
