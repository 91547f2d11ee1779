// The Python programs of client/, which some commands are.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace nibble {

// The interpreter: $NIBBLE_PYTHON, else that of docker/install-deps.
std::string PythonProgram();

// A folder of client/ ("importer") or "proto": beside an installed binary, else in the source tree.
std::string PythonFolder(const std::string& name);

// Sets PYTHONPATH for the programs that follow; they leave no compiled files.
void SetPythonPath(const std::vector<std::string>& folders);

// NOT_FOUND for a program that can't be started.
absl::Status PythonNotStarted(const std::string& program, int error);

}  // namespace nibble
