// What quantize_program does: shared with the tests that start it.
#pragma once

#include <filesystem>

#include "quant/pipeline/pipeline.h"

namespace nibble {

// Excludes the second layer and a linear of the third.
inline QuantizeSpec ProgramSpec(const std::filesystem::path& corpus) {
  QuantizeSpec spec;
  spec.weights = WeightSpec{.format = Format::kE2M1, .group_size = 32};
  spec.activations = ActivationSpec{.format = Format::kE4M3};
  spec.lorc_rank = 2;
  spec.exclude = {"model.layers.1.*", "*.2.self_attn.k_proj"};
  spec.calibration = {.corpus = corpus, .windows = 16, .window_tokens = 64};
  return spec;
}

}  // namespace nibble
