#pragma once

#include <string>

namespace nibble {

// spdlog's default logger writes to standard error, as `process` ("nibbled", "worker"). `level` is
// debug, info, warn or error.
void SetUpLogging(const std::string& process, const std::string& level);

}  // namespace nibble
