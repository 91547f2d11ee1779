#include "tests/bench/gpu/kernel_times.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <map>
#include <utility>

namespace nibble {
namespace {

using torch::profiler::impl::ActivityType;

// Seconds covered by intervals of nanoseconds.
double Covered(std::vector<std::pair<uint64_t, uint64_t>> intervals) {
  std::ranges::sort(intervals);
  uint64_t covered = 0;
  uint64_t end = 0;
  for (const auto& [from, to] : intervals) {
    if (to <= end) continue;
    covered += to - std::max(from, end);
    end = to;
  }
  return 1e-9 * static_cast<double>(covered);
}

}  // namespace

DeviceTimes ProfileDevice(const std::function<void()>& work) {
  namespace profiler = torch::autograd::profiler;
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  const std::set<ActivityType> activities = {ActivityType::CUDA};
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  work();
  const auto result = profiler::disableProfiler();

  std::map<std::string, KernelTime> by_name;
  std::vector<std::pair<uint64_t, uint64_t>> intervals;
  DeviceTimes times;
  for (const profiler::KinetoEvent& event : result->events()) {
    if (event.deviceType() != c10::DeviceType::CUDA) continue;
    KernelTime& kernel = by_name[event.name()];
    kernel.name = event.name();
    ++kernel.calls;
    kernel.seconds += 1e-9 * static_cast<double>(event.durationNs());
    intervals.emplace_back(event.startNs(), event.endNs());
  }
  for (auto& [name, kernel] : by_name) {
    times.sum += kernel.seconds;
    times.kernels.push_back(std::move(kernel));
  }
  std::ranges::sort(times.kernels, std::greater(), &KernelTime::seconds);
  times.busy = Covered(std::move(intervals));
  return times;
}

}  // namespace nibble
