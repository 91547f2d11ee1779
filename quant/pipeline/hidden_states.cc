#include "quant/pipeline/hidden_states.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "absl/cleanup/cleanup.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

// Free, or freed by dropping caches. 0 where the kernel does not say.
int64_t FreeHostBytes() {
  std::ifstream lines("/proc/meminfo");
  std::string line;
  while (std::getline(lines, line)) {
    int64_t kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %" SCNd64, &kib) == 1) return kib * 1024;
  }
  return 0;
}

absl::Status FileError(const std::filesystem::path& file, int error) {
  const std::string message =
      StrCat("hidden states in ", file.string(), ": ", std::strerror(error));
  return error == ENOSPC ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

// A file of so many bytes, all of them on the disk, mapped; its name is gone when this returns.
absl::StatusOr<at::Tensor> MapFile(const std::filesystem::path& folder, int64_t bytes) {
  std::string name = (folder / ".hidden-states-XXXXXX").string();
  const int file = mkstemp(name.data());
  if (file < 0) return FileError(name, errno);
  const absl::Cleanup close_file = [&] {
    unlink(name.c_str());
    close(file);
  };
  if (const int error = posix_fallocate(file, 0, bytes); error != 0) return FileError(name, error);
  return at::from_file(name, /*shared=*/true, bytes, at::kByte);
}

}  // namespace

StatesBudget FreeStatesBudget(at::Device device) {
  if (device.is_cpu()) return CpuStatesBudget(FreeHostBytes());
  const auto [free_bytes, all_bytes] =
      c10::getDeviceAllocator(device.type())->getMemoryInfo(device.index());
  return GpuStatesBudget(static_cast<int64_t>(free_bytes), FreeHostBytes());
}

absl::StatusOr<HiddenStates> HiddenStates::Make(int64_t tokens, int64_t width,
                                                const at::TensorOptions& options,
                                                const StatesBudget& budget,
                                                const std::filesystem::path& folder) {
  const int64_t bytes = tokens * width * static_cast<int64_t>(options.dtype().itemsize());
  HiddenStates states;
  states.device_ = options.device();
  states.place_ = ChooseStatesPlace(bytes, budget);
  if (states.place_ == StatesPlace::kDevice) {
    states.rows_ = at::empty({tokens, width}, options);
  } else if (states.place_ == StatesPlace::kPinnedHost) {
    states.rows_ = at::empty({tokens, width}, options.device(at::kCPU).pinned_memory(true));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const at::Tensor mapped, MapFile(folder, bytes));
    states.rows_ = mapped.view(options.dtype().toScalarType()).view({tokens, width});
  }
  return states;
}

at::Tensor HiddenStates::Read(int64_t first, int64_t count) const {
  return rows_.narrow(0, first, count).to(device_);
}

void HiddenStates::Write(int64_t first, const at::Tensor& rows) {
  rows_.narrow(0, first, rows.size(0)).copy_(rows);
}

}  // namespace nibble
