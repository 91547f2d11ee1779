// What a model's folder says of it, without loading it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/model/checkpoint/config.h"
#include "server/ops/names.h"

namespace nibble {

struct ModelFolder {
  std::string name;
  std::filesystem::path path;
  bool artifact = false;
  ModelConfig config;
  int64_t bytes = 0;       // of all files
  int64_t parameters = 0;  // of a checkpoint; an artifact's are packed: 0
  double linear_bits_per_weight = 0;
  double model_bits_per_weight = 0;
  bool has_chat_template = false;
};

absl::StatusOr<ModelFolder> ReadModelFolder(const std::filesystem::path& path);
// Every checkpoint and committed artifact of the data root, by name. A folder that can't be read is
// left out and named in `unreadable`.
std::vector<ModelFolder> ListModelFolders(const DataRoot& root,
                                          std::vector<std::string>* unreadable);

}  // namespace nibble
