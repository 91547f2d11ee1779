// What a device does while some work runs, as CUPTI sees it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace nibble {

struct KernelTime {
  std::string name;
  int64_t calls = 0;
  double seconds = 0;  // of all calls
  double alone = 0;    // of these, after every kernel that started before had ended
};

struct DeviceTimes {
  std::vector<KernelTime> kernels;  // by falling time alone; copies and fills too
  double sum = 0;                   // seconds of all kernels, each from its start to its end
  double busy = 0;                  // seconds in which at least one ran
};

// work() has waited for the device when it returns.
DeviceTimes ProfileDevice(const std::function<void()>& work);

}  // namespace nibble
