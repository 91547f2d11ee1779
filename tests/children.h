#pragma once

#include <sys/types.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace nibble {

// The living or unreaped children of a process, of whichever threads started them, whose first
// argument is `role`: what nibbled is started again as.
inline std::vector<pid_t> ChildrenOf(pid_t parent, const std::string& role) {
  std::vector<pid_t> pids;
  const std::string tasks = "/proc/" + std::to_string(parent) + "/task";
  for (const auto& task : std::filesystem::directory_iterator(tasks)) {
    std::ifstream children(task.path() / "children");
    for (pid_t child = 0; children >> child;) {
      std::ifstream arguments("/proc/" + std::to_string(child) + "/cmdline");
      std::string program;
      std::string first;
      std::getline(std::getline(arguments, program, '\0'), first, '\0');
      if (first == role) pids.push_back(child);
    }
  }
  return pids;
}

}  // namespace nibble
