// A child process with a socket as its standard input, over which both sides talk.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/ops/file_descriptor.h"

namespace nibble {

struct ChildProcess {
  pid_t pid = -1;
  FileDescriptor socket;  // our end; end of file when the child is gone
};

// Runs command[0] with `environment` ("NAME=value") added to ours. Its output goes to our standard
// error, and the kernel kills it when the calling thread ends, unless it calls EndWithSocket.
absl::StatusOr<ChildProcess> StartChild(const std::vector<std::string>& command,
                                        const std::vector<std::string>& environment);

// Waits for the child's end and tells it: "was killed by signal 9 (Killed)", "exited with status
// 3".
std::string WaitForChild(pid_t pid);

// For the child: from now on it ends (by _exit, in the middle of whatever it does) when the other
// end of `socket`, its standard input, is closed, as it is when the parent is gone; whether the
// thread that started it lives is nothing to it.
void EndWithSocket(int socket);

}  // namespace nibble
