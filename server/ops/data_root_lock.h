#pragma once

#include "absl/status/statusor.h"
#include "server/ops/names.h"

namespace nibble {

// Held by the one daemon of a data root, until it ends.
class DataRootLock {
 public:
  // FAILED_PRECONDITION when another daemon holds it.
  static absl::StatusOr<DataRootLock> Take(const DataRoot& root);
  DataRootLock(DataRootLock&& other) noexcept;
  DataRootLock& operator=(DataRootLock&&) = delete;
  ~DataRootLock();

 private:
  explicit DataRootLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace nibble
