// Choosing the next token from one row of logits. Torch-free.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "server/runner/step.h"

namespace nibble {

// Uniform in [0, 1), decided by the request's seed and the token's position alone.
double UniformDraw(uint64_t seed, int64_t position);

// The token after `input.tokens`, from its logits [vocab], which are changed in place by penalties,
// bias and bans. Greedy ties go to the lowest id.
int32_t ChooseToken(const SequenceInput& input, absl::Span<float> logits);

// log softmax of the raw logits at `token`, and of the `top` best ids, best first.
TokenLogprob Logprob(absl::Span<const float> logits, int32_t token, int32_t top);

}  // namespace nibble
