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
    {
      absl::MutexLock lock(&mutex_);
      queue_.pop_front();
      if (!ok) queue_.clear();
      if (!queue_.empty()) {
        this->StartWrite(&queue_.front());
        return;
      }
      ++draining_;
    }
    OnDrained();
    std::optional<grpc::Status> end;
    {
      absl::MutexLock lock(&mutex_);
      --draining_;
      end = EndIfDone();
    }
    if (end) this->Finish(*std::move(end));
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
    std::optional<grpc::Status> end;
    {
      absl::MutexLock lock(&mutex_);
      end_ = std::move(status);
      end = EndIfDone();
    }
    if (end) this->Finish(*std::move(end));
  }

 private:
  // The status, once nothing is left to do: Finish then runs unlocked, because it may delete this.
  std::optional<grpc::Status> EndIfDone() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!end_ || !queue_.empty() || draining_ > 0) return std::nullopt;
    return std::exchange(end_, std::nullopt);
  }

  absl::Mutex mutex_;
  std::deque<Response> queue_ ABSL_GUARDED_BY(mutex_);
  std::optional<grpc::Status> end_ ABSL_GUARDED_BY(mutex_);
  int draining_ ABSL_GUARDED_BY(mutex_) = 0;  // OnDrained calls under way
};

}  // namespace nibble
