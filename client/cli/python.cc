#include "client/cli/python.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "quant/base/strings.h"

namespace nibble {

namespace fs = std::filesystem;

std::string PythonProgram() {
  if (const char* chosen = std::getenv("NIBBLE_PYTHON")) return chosen;
  const char* prefix = std::getenv("NIBBLE_PREFIX");
  return StrCat(prefix ? prefix : "/opt/nibble", "/client-venv/bin/python");
}

std::string PythonFolder(const std::string& name) {
  std::error_code error;
  const fs::path binary = fs::read_symlink("/proc/self/exe", error);
  const fs::path installed = binary.parent_path().parent_path() / "share/nibble" / name;
  if (fs::is_directory(installed, error)) return installed.string();
  const fs::path source = NIBBLE_SOURCE_FOLDER;
  return (name == "proto" ? source / name : source / "client" / name).string();
}

void SetPythonPath(const std::vector<std::string>& folders) {
  std::string path;
  for (const std::string& folder : folders) path += (path.empty() ? "" : ":") + folder;
  setenv("PYTHONPATH", path.c_str(), 1);
  setenv("PYTHONDONTWRITEBYTECODE", "1", 1);
}

absl::Status PythonNotStarted(const std::string& program, int error) {
  return absl::NotFoundError(StrCat(program, ": ", std::strerror(error),
                                    ", expected the Python made by docker/install-deps (or set "
                                    "NIBBLE_PYTHON)"));
}

}  // namespace nibble
