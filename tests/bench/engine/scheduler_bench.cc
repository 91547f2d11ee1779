// The engine's own work per step: planning it and applying its outputs, while as many streams as
// asked for decode, without a model.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "server/engine/scheduler.h"

namespace nibble {
namespace {

constexpr int64_t kSteps = 1000;
constexpr int64_t kPrompt = 128;

// Every sequence gets the same next token.
StepOutputs Answer(const StepInputs& inputs) {
  StepOutputs outputs;
  for (const SequenceInput& input : inputs.sequences) {
    SequenceOutput& output = outputs.sequences.emplace_back();
    output.sequence = input.sequence;
    if (input.sample) output.token = 7;
  }
  return outputs;
}

void Measure(int32_t streams) {
  const KvPool pool = {.blocks = 1 << 16, .block_size = 16};
  Scheduler scheduler(pool,
                      {.max_step_tokens = int64_t{streams} * kPrompt, .max_sequences = streams});
  for (int32_t i = 0; i < streams; ++i) {
    EngineRequest request;
    request.prompt.assign(kPrompt, i);
    request.max_tokens = kSteps + 2;
    scheduler.Submit(static_cast<RequestId>(i) + 1, std::move(request), absl::UnixEpoch());
  }
  std::vector<double> microseconds;
  for (int64_t step = 0; step <= kSteps; ++step) {
    std::vector<Scheduler::Delivery> deliveries;
    const auto start = std::chrono::steady_clock::now();
    const StepInputs& inputs = scheduler.Plan(absl::UnixEpoch(), deliveries);
    const auto planned = std::chrono::steady_clock::now();
    StepOutputs outputs = Answer(inputs);
    const auto answered = std::chrono::steady_clock::now();
    scheduler.Apply(std::move(outputs), deliveries);
    const auto applied = std::chrono::steady_clock::now();
    if (static_cast<int32_t>(deliveries.size()) != streams) std::abort();
    if (step == 0) continue;  // the prompts
    const auto took = (planned - start) + (applied - answered);
    microseconds.push_back(std::chrono::duration<double, std::micro>(took).count());
  }
  std::ranges::sort(microseconds);
  std::printf("%4d streams: %6.1f us a step (median), %6.1f us (95%%)\n", streams,
              microseconds[kSteps / 2], microseconds[kSteps * 95 / 100]);
}

}  // namespace
}  // namespace nibble

int main() {
  for (const int32_t streams : {1, 16, 64, 256}) nibble::Measure(streams);
}
