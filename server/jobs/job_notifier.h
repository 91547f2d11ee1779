// Wakes those who watch a job when it has a new event.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace nibble {

// Thread-safe. A listener runs on the thread that notifies, one at a time, and must not call back
// into the notifier.
class JobNotifier {
 public:
  using Listener = std::function<void()>;
  using Ticket = uint64_t;

  Ticket Add(std::string job, Listener listener);
  // When it returns, the listener is not running and will not run again.
  void Remove(Ticket ticket);
  void Notify(std::string_view job);

 private:
  struct Watch {
    std::string job;
    Listener listener;
  };
  absl::Mutex mutex_;
  Ticket next_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<Ticket, Watch> watches_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nibble
