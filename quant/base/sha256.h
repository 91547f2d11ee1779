#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble {

// Lower-case hex sha256 of a file. NOT_FOUND when it can't be opened.
absl::StatusOr<std::string> Sha256File(const std::filesystem::path& path);
std::string Sha256(std::string_view bytes);

}  // namespace nibble
