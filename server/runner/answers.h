// What a step's rows of logits are wanted for, and the answers from them, on the host. Torch-free.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
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

// What one row says.
struct RowAnswer {
  std::optional<TokenLogprob> target;
  std::optional<int32_t> token;
  std::optional<TokenLogprob> logprob;  // of the token
};

// Answers one row's wish. logits [vocab] are changed in place. INTERNAL where they are not finite.
// Rows may be answered side by side.
absl::StatusOr<RowAnswer> AnswerRow(const StepInputs& inputs, const WantedRow& wanted,
                                    absl::Span<float> logits);
// `outputs` has one entry a sequence; a sequence's answers come in the order of its rows.
void AddAnswer(const WantedRow& wanted, RowAnswer answer, StepOutputs& outputs);

}  // namespace nibble
