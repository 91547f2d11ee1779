// One folder of this process, for parsers that read folders.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace nibble {

inline const std::filesystem::path& InputFolder() {
  static const std::filesystem::path* folder = [] {
    std::string pattern = "/dev/shm/nibble-fuzz-XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr) abort();
    return new std::filesystem::path(pattern);
  }();
  return *folder;
}

inline void WriteInput(const std::string& name, const uint8_t* data, size_t size) {
  std::ofstream(InputFolder() / name, std::ios::trunc)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
}

}  // namespace nibble
