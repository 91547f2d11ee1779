// Files that must be on disk when a function returns.
#pragma once

#include <filesystem>
#include <string_view>

#include "absl/status/status.h"

namespace nibble {

// "<path>: <action>: <why>". RESOURCE_EXHAUSTED where there is no room (disk, quota, largest file),
// INTERNAL otherwise.
absl::Status FileError(const std::filesystem::path& path, std::string_view action, int error);

// Entries that were made, renamed or removed in a folder are on disk.
absl::Status SyncFolder(const std::filesystem::path& folder);

// Writes a whole file.
absl::Status WriteFile(const std::filesystem::path& path, std::string_view content);

// Gives `from` the name `to`, replacing what bears it: after a crash there is one or the other.
absl::Status ReplaceFile(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace nibble
