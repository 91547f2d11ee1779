// What a runner's two processes tell each other, as bytes. Both are one binary on one machine:
// native byte order, no version. Fields in the order of their structs, a vector as a 32-bit count
// and its elements.
//
// Encoding replaces the contents of `bytes`; a caller that keeps the string saves its allocation.
// Decoding trusts nothing: bytes that are cut short, go on too long or hold what no encoder wrote
// are INTERNAL "<what>: found X, expected Y". That ids are in range is for those who use them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/runner/model_runner.h"
#include "server/runner/step.h"

namespace nibble {

// What a ModelRunner says of itself.
struct RunnerFacts {
  KvPool pool;
  int64_t context = 0;
  int32_t vocab_size = 0;
  int64_t weight_bytes = 0;
};

void Encode(const StepInputs& inputs, std::string& bytes);
void Encode(const StepOutputs& outputs, std::string& bytes);
void Encode(const RunnerFacts& facts, std::string& bytes);
// `status` is not OK. Its payloads stay behind.
void Encode(const absl::Status& status, std::string& bytes);

// Into `inputs`, whose allocations are used again; its contents are undefined after an error.
absl::Status Decode(std::string_view bytes, StepInputs& inputs);
absl::Status Decode(std::string_view bytes, StepOutputs& outputs);
absl::Status Decode(std::string_view bytes, RunnerFacts& facts);
// The status that was encoded, or the error of decoding it: never OK.
absl::Status DecodeStatus(std::string_view bytes);

}  // namespace nibble
