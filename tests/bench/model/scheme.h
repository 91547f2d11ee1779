// A quantization written as one word, for benchmarks' command lines.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "quant/pipeline/pipeline.h"

namespace nibble {

// Comma-separated words and name=value pairs over QuantizeSpec's defaults:
//   w=FORMAT wasym group=N scale=none|m1|m2 round=ceil|floor|mse   weights; absent: none
//   a=FORMAT aasym                                                 activations; absent: none
//   rtn natural lorc=RANK input                                    method, order, LoRC
//   search=none|diagonal iter=N                                    scale search, LoRC's iterations
//   rotate=SEED                                                    absent: not turned
// "w=e2m1,a=e4m3,group=64,scale=m2,lorc=8,input". INVALID_ARGUMENT naming the word.
absl::StatusOr<QuantizeSpec> ParseScheme(std::string_view text);

}  // namespace nibble
