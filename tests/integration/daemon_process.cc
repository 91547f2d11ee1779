#include "tests/integration/daemon_process.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <sstream>

#include "tests/children.h"

namespace nibble {
namespace {

constexpr char kListening[] = "listening grpc=";

std::string ReadFirstLine(int fd) {
  std::string line;
  for (char c = 0; read(fd, &c, 1) == 1 && c != '\n';) line += c;
  return line;
}

}  // namespace

DaemonProcess::DaemonProcess(const std::string& binary, const std::filesystem::path& root,
                             const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {binary,        "--data-root",      root.string(), "--listen",
                                    "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  std::array<int, 2> pipe_ends{};
  if (pipe(pipe_ends.data()) != 0) return;
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that dies leaves no daemon
    dup2(pipe_ends[1], STDOUT_FILENO);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(pipe_ends[1]);
  const std::string line = ReadFirstLine(pipe_ends[0]);
  close(pipe_ends[0]);
  if (!line.starts_with(kListening)) return;
  std::istringstream rest(line.substr(sizeof(kListening) - 1));
  rest >> grpc_address_ >> metrics_address_;
  metrics_address_ = metrics_address_.substr(metrics_address_.find('=') + 1);
}

DaemonProcess::~DaemonProcess() {
  if (pid_ > 0) Stop(SIGKILL);
}

std::vector<pid_t> DaemonProcess::workers() const { return ChildrenOf(pid_, "worker"); }

pid_t DaemonProcess::worker() const {
  const std::vector<pid_t> pids = workers();
  return pids.empty() ? 0 : pids.front();
}

std::vector<pid_t> DaemonProcess::runners() const { return ChildrenOf(pid_, "runner"); }

int DaemonProcess::Stop(int signal) {
  int status = 0;
  kill(pid_, signal);
  waitpid(pid_, &status, 0);
  pid_ = 0;
  return status;
}

}  // namespace nibble
