#include "quant/base/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "quant/base/strings.h"

namespace nibble {

absl::Status FileError(const std::filesystem::path& path, std::string_view action, int error) {
  const std::string message = StrCat(path.string(), ": ", action, ": ", std::strerror(error));
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  return full ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

absl::Status SyncFolder(const std::filesystem::path& folder) {
  const int descriptor = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return FileError(folder, "open", errno);
  const int result = fsync(descriptor);
  const int error = errno;
  close(descriptor);
  return result == 0 ? absl::OkStatus() : FileError(folder, "fsync", error);
}

absl::Status WriteFile(const std::filesystem::path& path, std::string_view content) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) return FileError(path, "open", errno);
  absl::Status status;
  while (status.ok() && !content.empty()) {
    const ssize_t count = write(descriptor, content.data(), content.size());
    if (count > 0) {
      content.remove_prefix(static_cast<size_t>(count));
    } else if (errno != EINTR) {
      status = FileError(path, "write", errno);
    }
  }
  if (status.ok() && fsync(descriptor) != 0) status = FileError(path, "fsync", errno);
  if (close(descriptor) != 0 && status.ok()) status = FileError(path, "close", errno);
  return status;
}

absl::Status ReplaceFile(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code error;
  std::filesystem::rename(from, to, error);
  if (error) return FileError(to, "rename", error.value());
  return SyncFolder(to.parent_path());
}

}  // namespace nibble
