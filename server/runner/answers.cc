#include "server/runner/answers.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "server/runner/sampling.h"

namespace nibble {
namespace {

void Sample(const SequenceInput& input, absl::Span<float> logits, SequenceOutput& output) {
  if (input.top_logprobs < 0) {
    output.token = ChooseToken(input, logits);
    return;
  }
  const std::vector<float> raw(logits.begin(), logits.end());
  output.token = ChooseToken(input, logits);
  output.logprob = Logprob(raw, *output.token, input.top_logprobs);
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

absl::Status AnswerRow(const StepInputs& inputs, const WantedRow& wanted, absl::Span<float> logits,
                       StepOutputs& outputs) {
  if (!std::isfinite(std::accumulate(logits.begin(), logits.end(), 0.0))) {
    return absl::InternalError("logits: found NaN or infinities, expected finite numbers");
  }
  const SequenceInput& input = inputs.sequences[wanted.sequence];
  SequenceOutput& output = outputs.sequences[wanted.sequence];
  if (wanted.target) {
    output.prompt_logprobs.push_back(
        Logprob(logits, *wanted.target, std::max(input.prompt_top_logprobs, 0)));
  }
  if (wanted.sample) Sample(input, logits, output);
  return absl::OkStatus();
}

}  // namespace nibble
