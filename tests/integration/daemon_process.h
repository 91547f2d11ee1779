#pragma once

#include <sys/types.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace nibble {

// The page of metrics at "127.0.0.1:port".
std::string Scrape(const std::string& address);

// A nibbled of one test's own, on free ports, stopped with it.
class DaemonProcess {
 public:
  // Starts the program at `binary`; returns once it serves. An empty grpc_address() says that it
  // ended instead.
  DaemonProcess(const std::string& binary, const std::filesystem::path& root,
                const std::vector<std::string>& arguments = {});
  ~DaemonProcess();
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  pid_t pid() const { return pid_; }
  const std::string& grpc_address() const { return grpc_address_; }
  const std::string& metrics_address() const { return metrics_address_; }
  // The process ids of the workers that live.
  std::vector<pid_t> workers() const;
  // Of the only one; 0: none lives.
  pid_t worker() const;
  // Of the loaded models' processes.
  std::vector<pid_t> runners() const;
  // Sends the signal and waits for the end. The wait status, as waitpid gives it.
  int Stop(int signal);

 private:
  pid_t pid_ = 0;
  std::string grpc_address_;
  std::string metrics_address_;
};

}  // namespace nibble
