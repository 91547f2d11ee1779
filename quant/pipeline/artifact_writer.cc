#include "quant/pipeline/artifact_writer.h"

#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"
#include "quant/base/files.h"
#include "quant/base/sha256.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kStagingPrefix = ".staging-";
constexpr char kUnfinishedShard[] = "shard.new";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr size_t kLargestCopiedFile = size_t{1} << 30;

}  // namespace

fs::path StagingFolder(const fs::path& artifact) {
  return artifact.parent_path() / StrCat(kStagingPrefix, artifact.filename().string());
}

fs::path StagedArtifact(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with(kStagingPrefix)) return {};
  return folder.parent_path() / name.substr(kStagingPrefix.size());
}

absl::Status RemoveStaging(const fs::path& artifact) {
  const fs::path staging = StagingFolder(artifact);
  std::error_code error;
  fs::remove_all(staging, error);
  return error ? FileError(staging, "remove", error.value()) : absl::OkStatus();
}

ArtifactWriter::ArtifactWriter(fs::path artifact, Json manifest, int64_t shards)
    : artifact_(std::move(artifact)),
      staging_(StagingFolder(artifact_)),
      shards_(shards),
      record_{std::move(manifest), {}} {}

absl::StatusOr<ArtifactWriter> ArtifactWriter::Open(const fs::path& artifact, Json manifest,
                                                    int64_t shards) {
  std::error_code error;
  if (fs::exists(artifact, error)) {
    return absl::AlreadyExistsError(
        StrCat("output: found ", artifact.string(), ", expected a name that is free"));
  }
  ArtifactWriter writer(artifact, std::move(manifest), shards);
  fs::create_directories(writer.staging_, error);
  if (error) return FileError(writer.staging_, "create", error.value());
  NIBBLE_RETURN_IF_ERROR(writer.TakeOver());
  return writer;
}

absl::Status ArtifactWriter::TakeOver() {
  absl::StatusOr<std::vector<FinishedLayer>> layers =
      ReadFinishedLayers(staging_, record_.manifest);
  if (layers.ok()) {
    record_.layers = *std::move(layers);
  } else if (!absl::IsNotFound(layers.status())) {
    discarded_ = std::string(layers.status().message());
  }
  for (const FinishedLayer& layer : record_.layers) {
    if (layer.shard.empty()) continue;
    written_.push_back(layer.shard);
    sums_[layer.shard] = layer.sha256;
  }
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(staging_, error)) {
    const std::string name = entry.path().filename().string();
    if (sums_.contains(name) || (name == kProgressRecord && layers.ok())) continue;
    fs::remove_all(entry.path(), error);
    if (error) return FileError(entry.path(), "remove", error.value());
  }
  return error ? FileError(staging_, "read", error.value()) : absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<TensorSource>> ArtifactWriter::LayerTensors(
    const FinishedLayer& layer) const {
  return TensorSource::OpenFile(staging_ / layer.shard);
}

std::string ArtifactWriter::NextShard() const {
  return absl::StrFormat("model-%05d-of-%05d.safetensors", written_.size() + 1, shards_);
}

// Under another name until it is whole: a process that is being killed may still be writing it.
absl::Status ArtifactWriter::WriteShard(absl::Span<const NamedTensor> tensors) {
  const std::string name = NextShard();
  NIBBLE_RETURN_IF_ERROR(WriteSafetensors(staging_ / kUnfinishedShard, tensors));
  NIBBLE_ASSIGN_OR_RETURN(sums_[name], Sha256File(staging_ / kUnfinishedShard));
  written_.push_back(name);
  return ReplaceFile(staging_ / kUnfinishedShard, staging_ / name);
}

absl::Status ArtifactWriter::FinishLayer(LayerReport report,
                                         absl::Span<const NamedTensor> tensors) {
  FinishedLayer layer{std::move(report), "", ""};
  if (!tensors.empty()) {
    NIBBLE_RETURN_IF_ERROR(WriteShard(tensors));
    layer.shard = written_.back();
    layer.sha256 = sums_[layer.shard];
  }
  record_.layers.push_back(std::move(layer));
  return WriteProgressRecord(staging_, record_);
}

absl::Status ArtifactWriter::WriteIndex() {
  if (static_cast<int64_t>(written_.size()) != shards_) {
    return absl::InternalError(
        StrCat(staging_.string(), ": found ", written_.size(), " shards, expected ", shards_));
  }
  Json weight_map = Json::object();
  int64_t bytes = 0;
  for (const std::string& shard : written_) {
    NIBBLE_ASSIGN_OR_RETURN(const auto file, SafetensorsFile::Open(staging_ / shard));
    for (const auto& [name, view] : file->tensors()) {
      weight_map[name] = shard;
      bytes += static_cast<int64_t>(view.bytes.size());
    }
  }
  return WriteJson(kIndex, {{"metadata", {{"total_size", bytes}}}, {"weight_map", weight_map}});
}

absl::Status ArtifactWriter::WriteJson(const std::string& name, const Json& json) {
  return WriteFile(staging_ / name, json.dump(2) + "\n");
}

absl::Status ArtifactWriter::CopyFile(const fs::path& from) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string content, ReadTextFile(from, kLargestCopiedFile));
  return WriteFile(staging_ / from.filename(), content);
}

absl::StatusOr<int64_t> ArtifactWriter::Commit() {
  Json files = Json::object();
  int64_t bytes = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(staging_)) {
    const std::string name = entry.path().filename().string();
    if (name == kProgressRecord) continue;
    const auto known = sums_.find(name);
    if (known != sums_.end()) {
      files[name] = known->second;
    } else {
      NIBBLE_ASSIGN_OR_RETURN(files[name], Sha256File(entry.path()));
    }
    bytes += static_cast<int64_t>(entry.file_size());
  }
  Json manifest = record_.manifest;
  manifest["files"] = std::move(files);
  NIBBLE_RETURN_IF_ERROR(WriteJson("nibble.json", manifest));
  bytes += static_cast<int64_t>(fs::file_size(staging_ / "nibble.json"));
  std::error_code error;
  fs::remove(staging_ / kProgressRecord, error);
  if (error) return FileError(staging_ / kProgressRecord, "remove", error.value());
  NIBBLE_RETURN_IF_ERROR(SyncFolder(staging_));
  NIBBLE_RETURN_IF_ERROR(ReplaceFile(staging_, artifact_));
  return bytes;
}

}  // namespace nibble
