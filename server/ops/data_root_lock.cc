#include "server/ops/data_root_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "quant/base/strings.h"

namespace nibble {

absl::StatusOr<DataRootLock> DataRootLock::Take(const DataRoot& root) {
  const std::string path = (root.folder / ".lock").string();
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    return absl::FailedPreconditionError(StrCat("can't open ", path, ": ", std::strerror(errno)));
  }
  DataRootLock lock(fd);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(StrCat("--data-root: found ", root.folder.string(),
                                                ", which another nibbled uses (", path,
                                                "): ", std::strerror(errno)));
  }
  return lock;
}

DataRootLock::DataRootLock(DataRootLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

DataRootLock::~DataRootLock() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace nibble
