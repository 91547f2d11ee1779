// Writes an artifact folder: staged beside its place, committed by nibble.json and a rename.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/checkpoint/safetensors.h"

namespace nibble {

// The staging folder is removed with the writer unless Commit succeeded.
class ArtifactWriter {
 public:
  // ALREADY_EXISTS when `artifact` does. A staging folder left by a killed process is removed.
  static absl::StatusOr<ArtifactWriter> Open(const std::filesystem::path& artifact);
  ~ArtifactWriter();
  ArtifactWriter(ArtifactWriter&& other) noexcept;
  ArtifactWriter& operator=(ArtifactWriter&&) = delete;

  // Kept until a shard's worth is there.
  absl::Status Add(std::vector<NamedTensor> tensors);
  // Writes the last shard and names all of them model-0000i-of-0000n.safetensors, with their index.
  absl::Status FinishTensors();
  absl::Status WriteJson(const std::string& name, const Json& json);
  absl::Status CopyFile(const std::filesystem::path& from);
  // Adds "files" (sha256 of all) to the manifest, writes it last and moves the folder to its place.
  absl::Status Commit(Json manifest);
  int64_t bytes() const { return bytes_; }

 private:
  explicit ArtifactWriter(std::filesystem::path artifact);
  absl::Status FlushShard();

  std::filesystem::path artifact_;
  std::filesystem::path staging_;
  std::vector<NamedTensor> pending_;
  int64_t pending_bytes_ = 0;
  int64_t tensor_bytes_ = 0;
  int64_t bytes_ = 0;
  std::vector<std::vector<std::string>> shards_;  // the tensors of each
};

}  // namespace nibble
