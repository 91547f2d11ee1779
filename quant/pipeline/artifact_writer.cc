#include "quant/pipeline/artifact_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/model/checkpoint/artifact.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kShardBytes = int64_t{1} << 30;

absl::Status FileError(const fs::path& path, std::string_view action, int error) {
  const std::string message = StrCat(path.string(), ": ", action, ": ", std::strerror(error));
  return error == ENOSPC ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

absl::Status SyncFolder(const fs::path& folder) {
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return FileError(folder, "open", errno);
  const int result = fsync(descriptor);
  const int error = errno;
  close(descriptor);
  return result == 0 ? absl::OkStatus() : FileError(folder, "fsync", error);
}

absl::Status WriteSynced(const fs::path& path, std::string_view content) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) return FileError(path, "open", errno);
  absl::Status status;
  while (status.ok() && !content.empty()) {
    const ssize_t count = write(descriptor, content.data(), content.size());
    if (count > 0) {
      content.remove_prefix(static_cast<size_t>(count));
    } else if (errno != EINTR) {
      status = FileError(path, "write", errno);
    }
  }
  if (status.ok() && fsync(descriptor) != 0) status = FileError(path, "fsync", errno);
  close(descriptor);
  return status;
}

std::string PartName(size_t shard) { return absl::StrFormat("part-%05d.safetensors", shard); }

std::string ShardName(size_t shard, size_t shards) {
  return absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, shards);
}

}  // namespace

ArtifactWriter::ArtifactWriter(fs::path artifact)
    : artifact_(std::move(artifact)),
      staging_(artifact_.parent_path() / StrCat(".staging-", artifact_.filename().string())) {}

ArtifactWriter::ArtifactWriter(ArtifactWriter&& other) noexcept
    : artifact_(std::move(other.artifact_)), staging_(std::exchange(other.staging_, {})) {}

ArtifactWriter::~ArtifactWriter() {
  std::error_code error;
  if (!staging_.empty()) fs::remove_all(staging_, error);
}

absl::StatusOr<ArtifactWriter> ArtifactWriter::Open(const fs::path& artifact) {
  std::error_code error;
  if (fs::exists(artifact, error)) {
    return absl::AlreadyExistsError(
        StrCat("output: found ", artifact.string(), ", expected a name that is free"));
  }
  ArtifactWriter writer(artifact);
  fs::remove_all(writer.staging_, error);
  if (!error) fs::create_directories(writer.staging_, error);
  if (error) return FileError(writer.staging_, "create", error.value());
  return writer;
}

absl::Status ArtifactWriter::Add(std::vector<NamedTensor> tensors) {
  for (NamedTensor& tensor : tensors) {
    pending_bytes_ += static_cast<int64_t>(tensor.bytes.size());
    pending_.push_back(std::move(tensor));
  }
  return pending_bytes_ >= kShardBytes ? FlushShard() : absl::OkStatus();
}

absl::Status ArtifactWriter::FlushShard() {
  if (pending_.empty()) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(WriteSafetensors(staging_ / PartName(shards_.size()), pending_));
  std::vector<std::string>& names = shards_.emplace_back();
  for (const NamedTensor& tensor : pending_) names.push_back(tensor.name);
  tensor_bytes_ += pending_bytes_;
  pending_bytes_ = 0;
  pending_.clear();
  return absl::OkStatus();
}

absl::Status ArtifactWriter::FinishTensors() {
  NIBBLE_RETURN_IF_ERROR(FlushShard());
  Json weight_map = Json::object();
  for (size_t i = 0; i < shards_.size(); ++i) {
    const std::string name = ShardName(i, shards_.size());
    std::error_code error;
    fs::rename(staging_ / PartName(i), staging_ / name, error);
    if (error) return FileError(staging_ / name, "rename", error.value());
    for (const std::string& tensor : shards_[i]) weight_map[tensor] = name;
  }
  return WriteJson("model.safetensors.index.json",
                   {{"metadata", {{"total_size", tensor_bytes_}}}, {"weight_map", weight_map}});
}

absl::Status ArtifactWriter::WriteJson(const std::string& name, const Json& json) {
  return WriteSynced(staging_ / name, json.dump(2) + "\n");
}

absl::Status ArtifactWriter::CopyFile(const fs::path& from) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string content, ReadTextFile(from, size_t{1} << 30));
  return WriteSynced(staging_ / from.filename(), content);
}

absl::Status ArtifactWriter::Commit(Json manifest) {
  Json files = Json::object();
  for (const fs::directory_entry& entry : fs::directory_iterator(staging_)) {
    NIBBLE_ASSIGN_OR_RETURN(files[entry.path().filename().string()], Sha256File(entry.path()));
    bytes_ += static_cast<int64_t>(entry.file_size());
  }
  manifest["files"] = std::move(files);
  NIBBLE_RETURN_IF_ERROR(WriteJson("nibble.json", manifest));
  bytes_ += static_cast<int64_t>(fs::file_size(staging_ / "nibble.json"));
  NIBBLE_RETURN_IF_ERROR(SyncFolder(staging_));
  std::error_code error;
  fs::rename(staging_, artifact_, error);
  if (error) return FileError(artifact_, "rename", error.value());
  staging_.clear();
  return SyncFolder(artifact_.parent_path());
}

}  // namespace nibble
