#include "quant/pipeline/progress_record.h"

#include <utility>

#include "quant/base/files.h"
#include "quant/base/sha256.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/pipeline/report.h"

namespace nibble {
namespace {

constexpr int64_t kFormatVersion = 1;
constexpr char kTemporary[] = "progress.json.new";

// "inputs/model.safetensors: found "..", expected "..".
absl::Status CompareManifests(const Json& found, const Json& expected) {
  if (found == expected) return absl::OkStatus();
  const Json difference = Json::diff(expected, found).front();
  const Json::json_pointer where(difference["path"].get<std::string>());
  const auto text = [&](const Json& manifest) {
    return manifest.contains(where) ? manifest[where].dump() : std::string("nothing");
  };
  return absl::FailedPreconditionError(
      StrCat(where.to_string().substr(1), ": found ", text(found), ", expected ", text(expected)));
}

absl::StatusOr<FinishedLayer> ParseLayer(const Json& json, const std::string& where,
                                         int64_t index) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::From(json, where));
  FinishedLayer layer;
  NIBBLE_ASSIGN_OR_RETURN(const Json* report, object.Require("report"));
  NIBBLE_ASSIGN_OR_RETURN(layer.report, ParseLayerReport(*report, StrCat(where, ": report")));
  NIBBLE_ASSIGN_OR_RETURN(layer.shard, object.String("shard"));
  NIBBLE_ASSIGN_OR_RETURN(layer.sha256, object.String("sha256"));
  if (layer.report.layer != index) return object.Unexpected("report", StrCat("layer ", index));
  return layer;
}

absl::Status CheckShard(const std::filesystem::path& folder, const FinishedLayer& layer) {
  if (layer.shard.empty()) return absl::OkStatus();
  const absl::StatusOr<std::string> found = Sha256File(folder / layer.shard);
  if (!found.ok()) return absl::DataLossError(std::string(found.status().message()));
  if (*found == layer.sha256) return absl::OkStatus();
  return absl::DataLossError(
      StrCat(layer.shard, ": found sha256 ", *found, ", expected ", layer.sha256));
}

absl::StatusOr<std::vector<FinishedLayer>> ParseRecord(const Json& json, const Json& manifest) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject record, JsonObject::From(json, kProgressRecord));
  NIBBLE_RETURN_IF_ERROR(record.Int("format_version", {kFormatVersion, kFormatVersion}).status());
  NIBBLE_ASSIGN_OR_RETURN(const Json* recorded, record.Require("manifest"));
  NIBBLE_RETURN_IF_ERROR(CompareManifests(*recorded, manifest));
  NIBBLE_ASSIGN_OR_RETURN(const Json::array_t* layers, record.Array("layers"));
  std::vector<FinishedLayer> finished;
  for (const Json& layer : *layers) {
    const auto index = static_cast<int64_t>(finished.size());
    NIBBLE_ASSIGN_OR_RETURN(
        FinishedLayer parsed,
        ParseLayer(layer, StrCat(kProgressRecord, ": layers[", index, "]"), index));
    finished.push_back(std::move(parsed));
  }
  return finished;
}

}  // namespace

absl::Status WriteProgressRecord(const std::filesystem::path& folder,
                                 const ProgressRecord& record) {
  Json layers = Json::array();
  for (const FinishedLayer& layer : record.layers) {
    layers.push_back({{"report", LayerReportJson(layer.report)},
                      {"shard", layer.shard},
                      {"sha256", layer.sha256}});
  }
  const Json json = {
      {"format_version", kFormatVersion}, {"manifest", record.manifest}, {"layers", layers}};
  NIBBLE_RETURN_IF_ERROR(WriteFile(folder / kTemporary, json.dump() + "\n"));
  return ReplaceFile(folder / kTemporary, folder / kProgressRecord);
}

absl::StatusOr<std::vector<FinishedLayer>> ReadFinishedLayers(const std::filesystem::path& folder,
                                                              const Json& manifest) {
  const absl::StatusOr<Json> json = ReadJsonFile(folder / kProgressRecord);
  if (absl::IsNotFound(json.status())) return json.status();
  if (!json.ok()) return absl::DataLossError(std::string(json.status().message()));
  absl::StatusOr<std::vector<FinishedLayer>> layers = ParseRecord(*json, manifest);
  if (absl::IsInvalidArgument(layers.status())) {
    return absl::DataLossError(std::string(layers.status().message()));
  }
  NIBBLE_RETURN_IF_ERROR(layers.status());
  for (const FinishedLayer& layer : *layers) NIBBLE_RETURN_IF_ERROR(CheckShard(folder, layer));
  return layers;
}

}  // namespace nibble
