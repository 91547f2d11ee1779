// Where a model is held and multiplied. Torch-free.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace nibble {

// The host's processors, or one CUDA device by its index.
struct Device {
  enum class Type { kCpu, kCuda };
  Type type = Type::kCpu;
  int index = 0;  // 0 for kCpu

  bool is_cuda() const { return type == Type::kCuda; }
  bool operator==(const Device&) const = default;
};

// "cpu", "cuda:0", "cuda:1", ... INVALID_ARGUMENT for anything else.
absl::StatusOr<Device> ParseDevice(std::string_view name);
std::string DeviceName(const Device& device);

}  // namespace nibble
