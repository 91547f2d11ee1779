#include "server/jobs/job_notifier.h"

#include <utility>

namespace nibble {

JobNotifier::Ticket JobNotifier::Add(std::string job, Listener listener) {
  absl::MutexLock lock(&mutex_);
  watches_[next_] = {std::move(job), std::move(listener)};
  return next_++;
}

void JobNotifier::Remove(Ticket ticket) {
  absl::MutexLock lock(&mutex_);
  watches_.erase(ticket);
}

void JobNotifier::Notify(std::string_view job) {
  absl::MutexLock lock(&mutex_);
  for (const auto& [ticket, watch] : watches_) {
    if (watch.job == job) watch.listener();
  }
}

}  // namespace nibble
