#pragma once

#include <deque>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace nibble {

// Runs tasks in order on a thread of its own. The destructor runs those still waiting.
class TaskThread {
 public:
  using Task = std::function<void()>;
  TaskThread();
  ~TaskThread();
  void Run(Task task) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Loop();

  absl::Mutex mutex_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace nibble
