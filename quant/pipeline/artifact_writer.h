// Writes an artifact folder: staged beside its place, committed by nibble.json and a rename. What
// is staged outlives the writer, and another attempt at the same artifact goes on from it.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/checkpoint/safetensors.h"
#include "quant/pipeline/progress_record.h"

namespace nibble {

class ArtifactWriter {
 public:
  // `manifest` says what is made from what; `shards` counts the model-*.safetensors that will be.
  // Takes over the layers that an earlier attempt with an equal manifest has finished, and removes
  // whatever else is staged. ALREADY_EXISTS when `artifact` does.
  static absl::StatusOr<ArtifactWriter> Open(const std::filesystem::path& artifact, Json manifest,
                                             int64_t shards);

  // The layers that are in the artifact, those taken over among them.
  const std::vector<FinishedLayer>& layers() const { return record_.layers; }
  // Why an earlier attempt's layers were not taken over; empty: they were, or there were none.
  const std::string& discarded() const { return discarded_; }
  // What FinishLayer was given; the layer must have a shard.
  absl::StatusOr<std::unique_ptr<TensorSource>> LayerTensors(const FinishedLayer& layer) const;

  // Writes the next layer's shard (none for a layer without tensors) and records the layer: once
  // this returns, no attempt does it again.
  absl::Status FinishLayer(LayerReport report, absl::Span<const NamedTensor> tensors);
  absl::Status WriteShard(absl::Span<const NamedTensor> tensors);
  // Which tensor is in which shard. After the last of them.
  absl::Status WriteIndex();
  absl::Status WriteJson(const std::string& name, const Json& json);
  absl::Status CopyFile(const std::filesystem::path& from);
  // Adds "files" (sha256 of all) to the manifest, writes it last and moves the folder to its place.
  // Returns the size of the files.
  absl::StatusOr<int64_t> Commit();

 private:
  ArtifactWriter(std::filesystem::path artifact, Json manifest, int64_t shards);
  // Empties the staging folder of all but what the record names.
  absl::Status TakeOver();
  std::string NextShard() const;

  std::filesystem::path artifact_;
  std::filesystem::path staging_;
  int64_t shards_;
  ProgressRecord record_;
  std::string discarded_;
  std::vector<std::string> written_;         // shards, in order
  std::map<std::string, std::string> sums_;  // sha256 of each
};

}  // namespace nibble
