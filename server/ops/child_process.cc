#include "server/ops/child_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

std::vector<std::string> JoinEnvironment(const std::vector<std::string>& added) {
  // Of two entries with one name the first is found.
  std::vector<std::string> all = added;
  for (char** entry = environ; *entry != nullptr; ++entry) all.emplace_back(*entry);
  return all;
}

// After fork in a process with threads: only async-signal-safe calls.
[[noreturn]] void BecomeChild(pid_t parent, int socket, char* const* argv, char* const* envp) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  const bool ready = getppid() == parent && dup2(socket, STDIN_FILENO) >= 0 &&
                     dup2(STDERR_FILENO, STDOUT_FILENO) >= 0;
  if (ready) execve(argv[0], argv, envp);
  _exit(127);
}

}  // namespace

absl::StatusOr<ChildProcess> StartChild(const std::vector<std::string>& command,
                                        const std::vector<std::string>& environment) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return absl::ResourceExhaustedError(StrCat("socketpair: ", std::strerror(errno)));
  }
  FileDescriptor ours(ends[0]);
  const FileDescriptor theirs(ends[1]);
  std::vector<std::string> arguments = command;
  std::vector<std::string> variables = JoinEnvironment(environment);
  const std::vector<char*> argv = Pointers(arguments);
  const std::vector<char*> envp = Pointers(variables);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::ResourceExhaustedError(StrCat("fork: ", std::strerror(errno)));
  if (pid == 0) BecomeChild(parent, theirs.get(), argv.data(), envp.data());
  return ChildProcess{pid, std::move(ours)};
}

std::string WaitForChild(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return StrCat("can't be waited for: ", std::strerror(errno));
  }
  if (WIFSIGNALED(status)) {
    const int number = WTERMSIG(status);
    return StrCat("was killed by signal ", number, " (", strsignal(number), ")");
  }
  return StrCat("exited with status ", WEXITSTATUS(status));
}

void EndWithSocket(int socket) {
  std::thread([socket] {
    pollfd hangup = {socket, POLLRDHUP, 0};
    while (poll(&hangup, 1, -1) < 0) {
    }
    _exit(0);
  }).detach();
  // The hangup is still seen where the parent ends before this.
  prctl(PR_SET_PDEATHSIG, 0);
}

}  // namespace nibble
