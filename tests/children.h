#pragma once

#include <sys/types.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
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

// True once nothing of the process is left but, perhaps, its wait status: all it had open is
// closed.
inline bool HasEnded(pid_t pid) {
  const std::string process = "/proc/" + std::to_string(pid);
  std::ifstream file(process + "/stat");
  std::string stat;
  if (!std::getline(file, stat)) return true;
  const size_t state = stat.rfind(')') + 2;
  if (stat.at(state) != 'Z') return false;
  std::error_code gone;
  const std::filesystem::directory_iterator threads(process + "/task", gone);
  return gone || std::distance(begin(threads), end(threads)) <= 1;
}

}  // namespace nibble
