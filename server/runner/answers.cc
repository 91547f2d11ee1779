#include "server/runner/answers.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "server/runner/sampling.h"

namespace nibble {
namespace {

// An infinity or a NaN has an exponent of ones.
bool AllFinite(absl::Span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t largest = 0;
  for (const float value : values) {
    largest = std::max(largest, std::bit_cast<uint32_t>(value) & kExponent);
  }
  return largest < kExponent;
}

void Sample(const SequenceInput& input, absl::Span<float> logits, RowAnswer& answer) {
  if (input.top_logprobs < 0) {
    answer.token = ChooseToken(input, logits);
    return;
  }
  const std::vector<float> raw(logits.begin(), logits.end());
  answer.token = ChooseToken(input, logits);
  answer.logprob = Logprob(raw, *answer.token, input.top_logprobs);
}

}  // namespace

std::vector<WantedRow> WantedRows(const StepInputs& inputs) {
  std::vector<WantedRow> wanted;
  for (size_t s = 0; s < inputs.sequences.size(); ++s) {
    const SequenceInput& sequence = inputs.sequences[s];
    const int64_t length = static_cast<int64_t>(sequence.tokens.size());
    for (int64_t i = 0; i + 1 < length && sequence.score_prompt; ++i) {
      wanted.push_back({s, i, sequence.tokens[i + 1], false});
    }
    WantedRow last{s, length - 1, std::nullopt, sequence.sample};
    if (sequence.score_prompt) last.target = sequence.score_next;
    if (last.target || last.sample) wanted.push_back(last);
  }
  return wanted;
}

absl::StatusOr<RowAnswer> AnswerRow(const StepInputs& inputs, const WantedRow& wanted,
                                    absl::Span<float> logits) {
  if (!AllFinite(logits)) {
    return absl::InternalError("logits: found NaN or infinities, expected finite numbers");
  }
  const SequenceInput& input = inputs.sequences[wanted.sequence];
  RowAnswer answer;
  if (wanted.target) {
    answer.target = Logprob(logits, *wanted.target, std::max(input.prompt_top_logprobs, 0));
  }
  if (wanted.sample) Sample(input, logits, answer);
  return answer;
}

void AddAnswer(const WantedRow& wanted, RowAnswer answer, StepOutputs& outputs) {
  SequenceOutput& output = outputs.sequences[wanted.sequence];
  if (answer.target) output.prompt_logprobs.push_back(*std::move(answer.target));
  if (answer.token) output.token = answer.token;
  if (answer.logprob) output.logprob = std::move(answer.logprob);
}

}  // namespace nibble
