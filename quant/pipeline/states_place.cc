#include "quant/pipeline/states_place.h"

#include <bit>

namespace nibble {

std::string_view StatesPlaceName(StatesPlace place) {
  if (place == StatesPlace::kDevice) return "device memory";
  return place == StatesPlace::kPinnedHost ? "pinned host memory" : "a file";
}

StatesBudget GpuStatesBudget(int64_t device_bytes, int64_t host_bytes) {
  return {.device = device_bytes / 4, .pinned_host = host_bytes / 2};
}

StatesBudget CpuStatesBudget(int64_t host_bytes) { return {.device = host_bytes / 2}; }

int64_t PinnedBytes(int64_t bytes) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(bytes)));
}

StatesPlace ChooseStatesPlace(int64_t bytes, const StatesBudget& budget) {
  if (bytes <= budget.device) return StatesPlace::kDevice;
  return PinnedBytes(bytes) <= budget.pinned_host ? StatesPlace::kPinnedHost : StatesPlace::kFile;
}

}  // namespace nibble
