// An artifact of random weights in a true shape (synthetic_model.h), rounded to nearest: what the
// weights are does not change the speed.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "quant/base/device.h"

namespace nibble {

struct GeneratedModel {
  std::string shape = "llama-7b";
  std::string scheme = "w=e2m1,a=e4m3,group=256,scale=m2,rtn";  // as scheme.h says
  std::filesystem::path folder;                                 // where it is made; emptied
  int64_t layers = 0;                                           // 0: all of the shape's
};

// --shape, --scheme, --folder, --layers. `model` outlives the parse.
void AddGeneratedModelOptions(CLI::App& app, GeneratedModel& model);

// Quantizes on `device`. Returns the artifact's folder, in model.folder.
absl::StatusOr<std::filesystem::path> MakeGeneratedModel(const GeneratedModel& model,
                                                         const Device& device);

}  // namespace nibble
