// The record of a job's finished layers, kept in its staging folder: what another attempt at the
// same job goes on from. Private to pipeline/.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "quant/model/checkpoint/json.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {

inline constexpr char kProgressRecord[] = "progress.json";

struct FinishedLayer {
  LayerReport report;
  std::string shard;   // its file's name; empty: none of the layer's linears was quantized
  std::string sha256;  // of that file
};

struct ProgressRecord {
  Json manifest;  // what is being made from what: the job's fingerprint
  std::vector<FinishedLayer> layers;
};

// Replaces the folder's record; on disk when it returns.
absl::Status WriteProgressRecord(const std::filesystem::path& folder, const ProgressRecord& record);

// The layers of the folder's record, their shards checked against their sums. NOT_FOUND: no record;
// FAILED_PRECONDITION: of another job, with the first field that differs; DATA_LOSS: damaged.
absl::StatusOr<std::vector<FinishedLayer>> ReadFinishedLayers(const std::filesystem::path& folder,
                                                              const Json& manifest);

}  // namespace nibble
