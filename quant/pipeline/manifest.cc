#include "quant/pipeline/manifest.h"

#include <ATen/Parallel.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>

#include "quant/base/sha256.h"
#include "quant/base/status_macros.h"
#include "quant/pipeline/report.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerFiles[] = {"tokenizer.json",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "tokenizer.model",
                                           "vocab.json",
                                           "merges.txt",
                                           "added_tokens.json",
                                           "generation_config.json",
                                           "chat_template.jinja"};

// By the file's name.
absl::StatusOr<Json> Sums(const std::vector<fs::path>& files) {
  std::vector<absl::StatusOr<std::string>> sums(files.size());
  std::atomic<size_t> next = 0;
  const auto hash_files = [&] {
    for (size_t i = next++; i < files.size(); i = next++) sums[i] = Sha256File(files[i]);
  };
  {
    const auto threads = std::min(static_cast<size_t>(at::get_num_threads()), files.size());
    std::vector<std::jthread> others;
    for (size_t i = 1; i < threads; ++i) others.emplace_back(hash_files);
    hash_files();
  }
  Json json = Json::object();
  for (size_t i = 0; i < files.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(json[files[i].filename().string()], sums[i]);
  }
  return json;
}

absl::StatusOr<Json> CalibrationJson(const CalibrationSpec& calibration) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string sum, Sha256File(calibration.corpus));
  return Json{{"corpus", calibration.corpus.filename().string()},
              {"sha256", sum},
              {"first_text", calibration.first_text},
              {"last_text", calibration.last_text},
              {"windows", calibration.windows},
              {"window", calibration.window_tokens}};
}

}  // namespace

std::vector<fs::path> TokenizerFiles(const fs::path& checkpoint) {
  std::vector<fs::path> files;
  for (const char* name : kTokenizerFiles) {
    std::error_code error;
    if (fs::exists(checkpoint / name, error)) files.push_back(checkpoint / name);
  }
  return files;
}

absl::StatusOr<Json> MakeManifest(const QuantizeSpec& spec, const std::set<std::string>& excluded,
                                  const fs::path& checkpoint,
                                  const std::vector<fs::path>& tensor_files, const Device& device) {
  std::vector<fs::path> inputs = tensor_files;
  for (const fs::path& file : TokenizerFiles(checkpoint)) inputs.push_back(file);
  inputs.push_back(checkpoint / "config.json");
  const fs::path index = checkpoint / "model.safetensors.index.json";
  if (std::error_code error; fs::exists(index, error)) inputs.push_back(index);
  NIBBLE_ASSIGN_OR_RETURN(Json sums, Sums(inputs));
  Json calibration;
  if (spec.weights && !spec.calibration.corpus.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(calibration, CalibrationJson(spec.calibration));
  }
  return Json{{"format_version", 1},
              {"model", checkpoint.filename().string()},
              {"spec", SpecJson(spec, excluded)},
              {"inputs", std::move(sums)},
              {"calibration", std::move(calibration)},
              {"made_on",
               {{"device", device.is_cuda() ? "cuda" : "cpu"}, {"threads", at::get_num_threads()}}},
              {"versions", {{"nibble", NIBBLE_VERSION}, {"torch", TORCH_VERSION}}}};
}

}  // namespace nibble
