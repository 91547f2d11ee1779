// Models and corpora to a server and back: resumed where they broke off, checked by sha256.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "client/cpp/client.h"

namespace nibble {

struct TransferProgress {
  int64_t done = 0;   // bytes, what had come before included
  int64_t total = 0;  // bytes
  std::string file;   // under way
};
using OnTransfer = std::function<void(const TransferProgress&)>;

// Sends the plain files of `folder`, which become the model `name`. A push of the same files that
// broke off, in whatever process, goes on where the server has it; UNAVAILABLE is tried again while
// there is progress. Errors as ModelService.Upload's.
absl::Status PushModel(Client& client, const std::filesystem::path& folder, const std::string& name,
                       const OnTransfer& on_progress);
absl::Status PushCorpus(Client& client, const std::filesystem::path& file, const std::string& name,
                        const OnTransfer& on_progress);

// Brings the model into `folder`, which must not exist; staged beside it in ".<name>.partial",
// which a later pull takes up. DATA_LOSS when a file has another sha256 than the server says.
absl::Status PullModel(Client& client, const std::string& name, const std::filesystem::path& folder,
                       const OnTransfer& on_progress);

}  // namespace nibble
