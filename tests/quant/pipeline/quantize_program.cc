// One attempt at a job in a process that resume_test may kill: CHECKPOINT ARTIFACT CORPUS. Says
// "ready" once it works.
#include <cstdio>

#include "quant/pipeline/pipeline.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "expected CHECKPOINT ARTIFACT CORPUS\n");
    return 2;
  }
  nibble::QuantizeSpec spec;
  spec.weights = nibble::WeightSpec{.format = nibble::Format::kE2M1, .group_size = 32};
  spec.activations = nibble::ActivationSpec{.format = nibble::Format::kE4M3};
  spec.lorc_rank = 2;
  spec.exclude = {"model.layers.1.*", "*.2.self_attn.k_proj"};
  spec.calibration = {.corpus = argv[3], .windows = 16, .window_tokens = 64};
  bool ready = false;
  const auto summary = nibble::QuantizeModel(spec, argv[1], argv[2], [&](const nibble::Progress&) {
    if (!ready) {
      std::puts("ready");
      std::fflush(stdout);
    }
    ready = true;
    return absl::OkStatus();
  });
  if (!summary.ok()) std::fprintf(stderr, "%s\n", summary.status().ToString().c_str());
  return summary.ok() ? 0 : 1;
}
