// A server stream's write queue: one write in flight, the rest in order behind it.
#pragma once

#include <grpcpp/support/server_callback.h>

#include <deque>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace nibble {

// Subclasses Push from any thread, End once (nothing may touch the object afterwards: it deletes
// itself), and stop their work in OnAbort.
template <class Response>
class StreamWriter : public grpc::ServerWriteReactor<Response> {
 public:
  void OnWriteDone(bool ok) final {
    if (!ok) OnAbort();
    bool drained = false;
    {
      absl::MutexLock lock(&mutex_);
      queue_.pop_front();
      if (!ok) queue_.clear();
      if (!queue_.empty()) {
        this->StartWrite(&queue_.front());
      } else if (end_) {
        this->Finish(*end_);
        return;
      } else {
        drained = true;
        // Kept from ending under OnDrained.
        draining_ = true;
      }
    }
    if (drained) {
      OnDrained();
      absl::MutexLock lock(&mutex_);
      draining_ = false;
      if (end_ && queue_.empty()) this->Finish(*end_);
    }
  }
  void OnCancel() final { OnAbort(); }
  void OnDone() override { delete this; }

 protected:
  // The client is gone: end soon. Can come more than once, and after End was called.
  virtual void OnAbort() = 0;
  // Every pushed message has been taken by the transport.
  virtual void OnDrained() {}

  // Returns how many messages wait, this one included.
  size_t Push(Response response) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    queue_.push_back(std::move(response));
    if (queue_.size() == 1) this->StartWrite(&queue_.front());
    return queue_.size();
  }
  // The status goes out after the last message.
  void End(grpc::Status status) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    end_ = std::move(status);
    if (queue_.empty() && !draining_) this->Finish(*end_);
  }

 private:
  absl::Mutex mutex_;
  std::deque<Response> queue_ ABSL_GUARDED_BY(mutex_);
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nibble
