#include "server/registry/model_folder.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <system_error>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/artifact.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/checkpoint/safetensors.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Parameters and bits per weight of a checkpoint: the linears are the matrices of its layers.
absl::Status CountWeights(ModelFolder& folder) {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<TensorSource> tensors,
                          TensorSource::Open(folder.path));
  int64_t bytes = 0;
  int64_t linear_bytes = 0;
  int64_t linear_weights = 0;
  for (const std::string& name : tensors->Names()) {
    NIBBLE_ASSIGN_OR_RETURN(const TensorView view, tensors->Find(name));
    folder.parameters += view.elements();
    bytes += static_cast<int64_t>(view.bytes.size());
    if (view.shape.size() != 2 || name.find("layers.") == std::string::npos) continue;
    linear_weights += view.elements();
    linear_bytes += static_cast<int64_t>(view.bytes.size());
  }
  const auto bits = [](int64_t size, int64_t weights) {
    return weights == 0 ? 0 : 8.0 * static_cast<double>(size) / static_cast<double>(weights);
  };
  folder.linear_bits_per_weight = bits(linear_bytes, linear_weights);
  folder.model_bits_per_weight = bits(bytes, folder.parameters);
  return absl::OkStatus();
}

absl::Status ReadReport(ModelFolder& folder) {
  const fs::path file = folder.path / "report.json";
  NIBBLE_ASSIGN_OR_RETURN(const Json parsed, ReadJsonFile(file));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject report, JsonObject::From(parsed, file.string()));
  NIBBLE_ASSIGN_OR_RETURN(folder.parameters, report.Int("parameters", {}));
  NIBBLE_ASSIGN_OR_RETURN(folder.linear_bits_per_weight,
                          report.Number("linear_bits_per_weight", {0, 64}));
  NIBBLE_ASSIGN_OR_RETURN(folder.model_bits_per_weight,
                          report.Number("model_bits_per_weight", {0, 64}));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const fs::path& folder,
                                                         std::string_view field) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(folder);
  if (!absl::IsNotFound(tokenizer.status())) return tokenizer;
  return FieldError(absl::StatusCode::kFailedPrecondition, field,
                    StrCat("\"", folder.filename().string(), "\" without a tokenizer.json"),
                    "a model with one");
}

absl::StatusOr<ModelFolder> ReadModelFolder(const fs::path& path) {
  ModelFolder folder;
  folder.name = path.filename().string();
  folder.path = path;
  folder.artifact = IsArtifact(path);
  NIBBLE_ASSIGN_OR_RETURN(folder.config, LoadModelConfig(path));
  if (folder.artifact) {
    NIBBLE_RETURN_IF_ERROR(ReadReport(folder));
  } else {
    NIBBLE_RETURN_IF_ERROR(CountWeights(folder));
  }
  std::error_code error;
  const auto written = fs::last_write_time(path / "config.json", error);
  folder.created = absl::FromChrono(std::chrono::time_point_cast<std::chrono::microseconds>(
      std::chrono::file_clock::to_sys(written)));
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error)) {
    if (entry.is_regular_file(error)) folder.bytes += static_cast<int64_t>(entry.file_size(error));
  }
  folder.has_chat_template = ChatTemplate::Load(path).ok();
  if (error) return absl::InternalError(StrCat(path.string(), ": ", error.message()));
  return folder;
}

std::vector<ModelFolder> ListModelFolders(const DataRoot& root,
                                          std::map<std::string, std::string>* unreadable) {
  std::vector<ModelFolder> folders;
  for (const fs::path& parent : {root.models(), root.artifacts()}) {
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(parent, error)) {
      const std::string name = entry.path().filename().string();
      if (!CheckName("name", name).ok() || !FindModel(root, "name", name).ok()) continue;
      absl::StatusOr<ModelFolder> folder = ReadModelFolder(entry.path());
      if (folder.ok()) {
        folders.push_back(*std::move(folder));
      } else {
        unreadable->emplace(name, folder.status().message());
      }
    }
  }
  std::ranges::sort(folders, {}, &ModelFolder::name);
  return folders;
}

void UnreadableWarnings::Tell(const std::map<std::string, std::string>& unreadable) {
  for (const auto& [name, reason] : unreadable) {
    const auto told = told_.find(name);
    if (told != told_.end() && told->second == reason) continue;
    spdlog::warn("model {} is not listed: {}", name, reason);
  }
  told_ = unreadable;
}

}  // namespace nibble
