// nibble.json: what is made from what. Private to pipeline/.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/model/checkpoint/json.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {

// The files of a checkpoint that an artifact takes over as they are.
std::vector<std::filesystem::path> TokenizerFiles(const std::filesystem::path& checkpoint);

// The manifest but for the artifact's own files. Equal manifests make equal artifacts: it holds the
// spec, the sha256 of every file that is read, the versions, the type of device and the number of
// threads. Reads all of `tensor_files`.
absl::StatusOr<Json> MakeManifest(const QuantizeSpec& spec, const std::set<std::string>& excluded,
                                  const std::filesystem::path& checkpoint,
                                  const std::vector<std::filesystem::path>& tensor_files,
                                  const Device& device);

}  // namespace nibble
