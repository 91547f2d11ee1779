#include "client/cli/temporary_folder.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <system_error>

#include "absl/memory/memory.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

// Waits for the end of its input, which no signal to the terminal's processes cuts short.
constexpr char kRemover[] = "trap '' INT TERM HUP; cat > /dev/null; rm -rf \"$1\"";

absl::Status NotMade(int error) {
  return absl::InternalError(StrCat("can't make a temporary folder: ", std::strerror(error)));
}

// 0, or an errno.
int StartRemover(const fs::path& folder, int input, pid_t& pid) {
  std::array<std::string, 5> words = {"/bin/sh", "-c", kRemover, "sh", folder.string()};
  std::array<char*, 6> argv = {words[0].data(), words[1].data(), words[2].data(),
                               words[3].data(), words[4].data(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
  const int error = posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  return error;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TemporaryFolder>> TemporaryFolder::Make() {
  std::error_code error;
  std::string folder = (fs::temp_directory_path(error) / "nibble-XXXXXX").string();
  if (error) return NotMade(error.value());
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return NotMade(errno);
  int failed = mkdtemp(folder.data()) == nullptr ? errno : 0;
  pid_t remover = 0;
  if (failed == 0) {
    failed = StartRemover(folder, ends[0], remover);
    if (failed != 0) fs::remove(folder, error);
  }
  close(ends[0]);
  if (failed == 0) return absl::WrapUnique(new TemporaryFolder(folder, remover, ends[1]));
  close(ends[1]);
  return NotMade(failed);
}

TemporaryFolder::~TemporaryFolder() {
  close(alive_);
  while (waitpid(remover_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace nibble
