// What a step's rows of logits are wanted for, and the answers from them, on the host. Torch-free.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "server/runner/step.h"

namespace nibble {

// One row of logits that a sequence needs, and what for.
struct WantedRow {
  size_t sequence = 0;            // index in the step
  int64_t token = 0;              // of its new ones: the logits after it
  std::optional<int32_t> target;  // score this token
  bool sample = false;
};

// In the order of the step's tokens.
std::vector<WantedRow> WantedRows(const StepInputs& inputs);

// Answers one row's wish in `outputs`, one entry a sequence. logits [vocab] are changed in place.
// INTERNAL where they are not finite.
absl::Status AnswerRow(const StepInputs& inputs, const WantedRow& wanted, absl::Span<float> logits,
                       StepOutputs& outputs);

}  // namespace nibble
