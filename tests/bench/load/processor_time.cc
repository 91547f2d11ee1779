#include "tests/bench/load/processor_time.h"

#include <unistd.h>

#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

#include "quant/base/strings.h"

namespace nibble {

absl::StatusOr<double> ProcessorSeconds(pid_t pid) {
  const std::string path = StrCat("/proc/", pid, "/stat");
  std::ifstream file(path);
  const std::string stat{std::istreambuf_iterator<char>(file), {}};
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) {
    return absl::NotFoundError(StrCat("process: found none at ", path));
  }
  // state ppid pgrp session tty_nr tpgid flags minflt cminflt majflt cmajflt utime stime
  std::istringstream fields(stat.substr(name_end + 1));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;
  int64_t user = 0;
  int64_t system = 0;
  fields >> user >> system;
  return static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace nibble
