#include "quant/base/device.h"

#include <charconv>

#include "quant/base/strings.h"

namespace nibble {

absl::StatusOr<Device> ParseDevice(std::string_view name) {
  if (name == "cpu") return Device{};
  constexpr std::string_view kCuda = "cuda:";
  if (name.starts_with(kCuda)) {
    Device device = {.type = Device::Type::kCuda};
    std::from_chars(name.data() + kCuda.size(), name.data() + name.size(), device.index);
    if (DeviceName(device) == name) return device;
  }
  return absl::InvalidArgumentError(
      StrCat("device: found \"", name, "\", expected cpu or cuda:0, cuda:1, ..."));
}

std::string DeviceName(const Device& device) {
  return device.is_cuda() ? StrCat("cuda:", device.index) : "cpu";
}

}  // namespace nibble
