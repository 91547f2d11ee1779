#include "tests/bench/gpu/kernel_times.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

namespace nibble {
namespace {

using torch::profiler::impl::ActivityType;

constexpr double kNanosecond = 1e-9;

}  // namespace

DeviceTimes ProfileDevice(const std::function<void()>& work) {
  namespace profiler = torch::autograd::profiler;
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  const std::set<ActivityType> activities = {ActivityType::CUDA};
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  work();
  const auto result = profiler::disableProfiler();

  std::vector<const profiler::KinetoEvent*> events;
  for (const profiler::KinetoEvent& event : result->events()) {
    if (event.deviceType() == c10::DeviceType::CUDA) events.push_back(&event);
  }
  std::ranges::sort(events, {},
                    [](const profiler::KinetoEvent* event) { return event->startNs(); });
  std::map<std::string, KernelTime> by_name;
  DeviceTimes times;
  uint64_t end = 0;
  for (const profiler::KinetoEvent* event : events) {
    KernelTime& kernel = by_name[event->name()];
    kernel.name = event->name();
    ++kernel.calls;
    kernel.seconds += kNanosecond * static_cast<double>(event->durationNs());
    if (event->endNs() <= end) continue;
    kernel.alone +=
        kNanosecond * static_cast<double>(event->endNs() - std::max(event->startNs(), end));
    end = event->endNs();
  }
  for (auto& [name, kernel] : by_name) {
    times.sum += kernel.seconds;
    times.busy += kernel.alone;
    times.kernels.push_back(std::move(kernel));
  }
  std::ranges::sort(times.kernels, std::greater(), &KernelTime::alone);
  return times;
}

}  // namespace nibble
