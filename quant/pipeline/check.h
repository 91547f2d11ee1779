// Which linears a job takes, and whether it can work at all. Private to pipeline/.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {

// The names that `patterns` (globs) choose. INVALID_ARGUMENT for a
// pattern that meets no linear, and when none is left.
absl::StatusOr<std::set<std::string>> ExcludedLinears(const std::vector<std::string>& patterns,
                                                      const std::vector<LinearInfo>& linears);

absl::Status CheckSpecAgainst(const QuantizeSpec& spec, const DecoderLoader& loader);

}  // namespace nibble
