#include "server/ops/resources.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/numbers.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

// Version 2 and version 1; a group without a limit says "max", or a number beyond any memory.
constexpr const char* kGroupLimits[] = {"/sys/fs/cgroup/memory.max",
                                        "/sys/fs/cgroup/memory/memory.limit_in_bytes"};

// Empty when there is none.
std::string ReadSmallFile(const char* path) {
  std::ostringstream content;
  content << std::ifstream(path).rdbuf();
  return content.str();
}

}  // namespace

int64_t ParseMemTotal(std::string_view meminfo) {
  constexpr std::string_view kField = "MemTotal:";
  const size_t at = meminfo.find(kField);
  if (at == std::string_view::npos) return 0;
  std::istringstream rest{std::string(meminfo.substr(at + kField.size(), 64))};
  int64_t kilobytes = 0;
  rest >> kilobytes;
  return kilobytes * 1024;
}

absl::StatusOr<Resources> FindResources(const std::filesystem::path& data_root) {
  Resources resources;
  resources.memory_bytes = ParseMemTotal(ReadSmallFile("/proc/meminfo"));
  if (resources.memory_bytes == 0) {
    return absl::UnavailableError("/proc/meminfo: found no MemTotal, expected one in kB");
  }
  for (const char* path : kGroupLimits) {
    int64_t limit = 0;
    if (absl::SimpleAtoi(ReadSmallFile(path), &limit)) {
      resources.memory_bytes = std::min(resources.memory_bytes, limit);
    }
  }
  struct statvfs disk = {};
  if (statvfs(data_root.c_str(), &disk) != 0) {
    return absl::UnavailableError(
        StrCat(data_root.string(), ": its free disk is not told: ", std::strerror(errno)));
  }
  resources.disk_free_bytes = static_cast<int64_t>(disk.f_bavail * disk.f_frsize);
  return resources;
}

}  // namespace nibble
