// A folder that goes with this process, however it ends.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <memory>

#include "absl/status/statusor.h"

namespace nibble {

class TemporaryFolder {
 public:
  // Under the system's folder of temporary files. INTERNAL when it can't be made.
  static absl::StatusOr<std::unique_ptr<TemporaryFolder>> Make();
  // Removes it, and waits until it is gone.
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  TemporaryFolder(std::filesystem::path path, pid_t remover, int alive)
      : path_(std::move(path)), remover_(remover), alive_(alive) {}

  const std::filesystem::path path_;
  const pid_t remover_;  // a process that removes the folder
  const int alive_;      // once this end of a pipe is closed
};

}  // namespace nibble
