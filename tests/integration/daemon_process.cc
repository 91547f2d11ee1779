#include "tests/integration/daemon_process.h"

#include <netdb.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
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

std::string Scrape(const std::string& address) {
  const size_t colon = address.rfind(':');
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(address.substr(0, colon).c_str(), address.substr(colon + 1).c_str(), &hints,
                  &found) != 0) {
    return {};
  }
  const int fd = socket(found->ai_family, found->ai_socktype, 0);
  std::string page;
  if (connect(fd, found->ai_addr, found->ai_addrlen) == 0) {
    const std::string request = "GET /metrics HTTP/1.0\r\nConnection: close\r\n\r\n";
    send(fd, request.data(), request.size(), MSG_NOSIGNAL);
    char bytes[4096];
    for (ssize_t count = 0; (count = recv(fd, bytes, sizeof(bytes), 0)) > 0;) {
      page.append(bytes, static_cast<size_t>(count));
    }
  }
  close(fd);
  freeaddrinfo(found);
  return page;
}

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
