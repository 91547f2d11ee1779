// What a model's folder says of it, without loading it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "quant/model/checkpoint/config.h"
#include "quant/model/tokenizer/tokenizer.h"
#include "server/ops/names.h"

namespace nibble {

struct ModelFolder {
  std::string name;
  std::filesystem::path path;
  bool artifact = false;
  ModelConfig config;
  absl::Time created;
  int64_t bytes = 0;  // of all files
  int64_t parameters = 0;
  double linear_bits_per_weight = 0;
  double model_bits_per_weight = 0;
  bool has_chat_template = false;
};

// The folder's tokenizer. FAILED_PRECONDITION by the name of `field` when it has none.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::filesystem::path& folder,
                                                         std::string_view field);

absl::StatusOr<ModelFolder> ReadModelFolder(const std::filesystem::path& path);
// Every checkpoint and committed artifact of the data root, by name. A folder that can't be read is
// left out and named in `unreadable`, with the reason.
std::vector<ModelFolder> ListModelFolders(const DataRoot& root,
                                          std::map<std::string, std::string>* unreadable);

// Warns in the log of the models that lists leave out: of each once, and again when its reason
// changes. Not thread-safe.
class UnreadableWarnings {
 public:
  // `unreadable`: what one whole list left out.
  void Tell(const std::map<std::string, std::string>& unreadable);

 private:
  std::map<std::string, std::string> told_;
};

}  // namespace nibble
