// The command line tool: its arguments in, text and an exit status out.
#pragma once

#include <ostream>
#include <string>
#include <vector>

namespace nibble {

struct Terminal {
  // Results.
  std::ostream& out;
  // Progress, usage figures and errors.
  std::ostream& err;
  // `err` is a terminal: progress is a line that is redrawn.
  bool live = false;
};

// Runs `nibble ARGUMENTS...`. The process's exit status: 0, or 1 with one sentence on `err`.
int RunCli(const std::vector<std::string>& arguments, Terminal terminal);

}  // namespace nibble
