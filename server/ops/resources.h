// What this machine has for jobs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble {

struct Resources {
  int64_t memory_bytes = 0;     // of the machine, or of the control group that bounds the process
  int64_t device_bytes = 0;     // of a worker's GPU; 0: none, or not known yet
  int64_t disk_free_bytes = 0;  // for an unprivileged process, where the data root lies
};

// UNAVAILABLE when the system does not tell.
absl::StatusOr<Resources> FindResources(const std::filesystem::path& data_root);

// MemTotal of /proc/meminfo's text, in bytes; 0: it is not there.
int64_t ParseMemTotal(std::string_view meminfo);

}  // namespace nibble
