// Quantizes a model by several schemes in f32 and prints each one's perplexity on several texts.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "quant/base/status_macros.h"
#include "quant/pipeline/perplexity.h"
#include "quant/pipeline/pipeline.h"
#include "tests/bench/model/scheme.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

struct Options {
  fs::path model;
  fs::path folder = "/tmp/nibble-accuracy";
  std::string device = "cuda:0";
  int64_t window = 2048;
  std::vector<std::string> corpora;
  std::vector<std::string> schemes;  // "f16": the model itself
  CalibrationSpec calibration = {.first_text = 1, .last_text = 700};
};

using Windows = std::vector<std::vector<int32_t>>;

double SecondsSince(absl::Time began) { return absl::ToDoubleSeconds(absl::Now() - began); }

absl::Status Row(const Options& options, const Device& device, const std::string& scheme,
                 const std::vector<Windows>& corpora) {
  const absl::Time began = absl::Now();
  fs::path model = options.model;
  if (scheme != "f16") {
    NIBBLE_ASSIGN_OR_RETURN(QuantizeSpec spec, ParseScheme(scheme));
    spec.compute = Compute::kF32;
    if (spec.weights) spec.calibration = options.calibration;
    model = options.folder / "artifact";
    fs::remove_all(model);
    NIBBLE_RETURN_IF_ERROR(
        QuantizeModel(
            spec, options.model, model, [](const Progress&) { return absl::OkStatus(); }, device)
            .status());
  }
  const double quantized = SecondsSince(began);
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Decoder> decoder,
                          Decoder::Load(model, Compute::kF32, device));
  std::printf("| %s |", scheme.c_str());
  for (const Windows& windows : corpora) {
    NIBBLE_ASSIGN_OR_RETURN(const Perplexity result, EvaluatePerplexity(*decoder, windows));
    std::printf(" %.3f |", result.perplexity);
  }
  std::printf(" %.1f | %.1f |\n", quantized, SecondsSince(began) - quantized);
  std::fflush(stdout);
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Device device, ParseDevice(options.device));
  fs::create_directories(options.folder);
  std::vector<Windows> corpora;
  std::string head = "| scheme |";
  std::string rule = "|---|";
  for (const std::string& corpus : options.corpora) {
    NIBBLE_ASSIGN_OR_RETURN(corpora.emplace_back(),
                            EvaluationWindows(options.model, corpus, options.window));
    head += " " + fs::path(corpus).filename().string() + " |";
    rule += "---|";
  }
  std::printf("%s, window %ld, f32 on %s\n%s quantize s | evaluate s |\n%s---|---|\n",
              options.model.c_str(), options.window, options.device.c_str(), head.c_str(),
              rule.c_str());
  for (const std::string& scheme : options.schemes) {
    const absl::Status status = Row(options, device, scheme, corpora);
    if (!status.ok()) std::printf("| %s | %s |\n", scheme.c_str(), status.ToString().c_str());
  }
  fs::remove_all(options.folder);
  return absl::OkStatus();
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  nibble::Options options;
  CLI::App app("Perplexities of a model under several quantizations, in f32");
  app.add_option("--model", options.model, "A checkpoint folder")->required();
  app.add_option("--corpus", options.corpora, "A text to evaluate; repeated")->required();
  app.add_option("--scheme", options.schemes, "f16, or as scheme.h says; repeated")->required();
  app.add_option("--calibration", options.calibration.corpus, "A .txt or .jsonl");
  app.add_option("--first-text", options.calibration.first_text, "Of a .jsonl, from 1");
  app.add_option("--last-text", options.calibration.last_text, "Inclusive; 0: the last");
  app.add_option("--windows", options.calibration.windows, "Calibration windows");
  app.add_option("--calibration-window", options.calibration.window_tokens, "Tokens of each");
  app.add_option("--window", options.window, "Tokens of an evaluation window");
  app.add_option("--device", options.device, "cpu, cuda:0, ...");
  app.add_option("--folder", options.folder, "Where artifacts are made and removed");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = nibble::Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "accuracy_bench: %s\n", status.ToString().c_str());
  return 1;
}
