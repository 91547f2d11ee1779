// Where the calibration's hidden states lie between two layers. Private to pipeline/.
#pragma once

#include <cstdint>
#include <string_view>

namespace nibble {

// With the layers (for the CPU, its memory), in page-locked host memory, in a file.
enum class StatesPlace { kDevice, kPinnedHost, kFile };
// "device memory", "pinned host memory", "a file".
std::string_view StatesPlaceName(StatesPlace place);

// What of each kind of memory they may take, bytes.
struct StatesBudget {
  int64_t device = 0;
  int64_t pinned_host = 0;  // 0 for the CPU
};
// A quarter of the device's memory, half of the host's.
StatesBudget GpuStatesBudget(int64_t device_bytes, int64_t host_bytes);
// Half of the host's memory.
StatesBudget CpuStatesBudget(int64_t host_bytes);

// What so many bytes take of page-locked memory: LibTorch rounds up to a power of two.
int64_t PinnedBytes(int64_t bytes);

// The first place whose budget holds so many bytes.
StatesPlace ChooseStatesPlace(int64_t bytes, const StatesBudget& budget);

}  // namespace nibble
