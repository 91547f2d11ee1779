// Times decode and prefill steps of a runner on one GPU. A step is everything between StepInputs
// and StepOutputs: planning, copies, kernels.
#include <cuda_profiler_api.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <string>
#include <vector>

#include "quant/base/status_macros.h"
#include "server/runner/cuda_runner.h"
#include "tests/bench/gpu/kernel_times.h"
#include "tests/bench/model/generated_model.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct Options {
  GeneratedModel model = {.folder = "/dev/shm/nibble-step-bench"};
  fs::path artifact;
  std::vector<int64_t> batches = {1, 8, 64, 256};
  std::vector<int64_t> contexts = {128, 1024};
  std::vector<int64_t> prompts = {512, 2048};
  bool e4m3_cache = false;
  bool profile = false;
  int64_t steps = 64;
};

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// `batch` sequences of `length` new tokens at `position`, over blocks of their own.
StepInputs MakeStep(int64_t batch, int64_t position, int64_t length, int32_t block_size) {
  StepInputs inputs;
  int32_t block = 0;
  for (int64_t i = 0; i < batch; ++i) {
    SequenceInput& sequence = inputs.sequences.emplace_back();
    sequence.sequence = static_cast<uint64_t>(i);
    for (int64_t t = 0; t < length; ++t) {
      sequence.tokens.push_back(static_cast<int32_t>((i * 7919 + t * 104729) % 32000));
    }
    sequence.position = position;
    for (int64_t at = 0; at < position + length; at += block_size) {
      sequence.blocks.push_back(block++);
    }
    sequence.sample = true;
  }
  return inputs;
}

// What kernels of a step take beside the `median` of its time, which profiling does not lengthen.
absl::Status PrintProfile(ModelRunner& runner, const StepInputs& inputs, double median) {
  constexpr int kSteps = 8;
  absl::Status status;
  const DeviceTimes times = ProfileDevice([&] {
    for (int i = 0; i < kSteps && status.ok(); ++i) status = runner.Step(inputs).status();
  });
  NIBBLE_RETURN_IF_ERROR(status);
  std::printf("  kernels' own times %.3f ms, the step %.2f x that; device busy %.3f ms\n",
              1e3 * times.sum / kSteps, median * kSteps / times.sum, 1e3 * times.busy / kSteps);
  std::printf("  %9s %9s %11s   a call, of which alone after those before it\n", "calls", "us",
              "us alone");
  for (const KernelTime& kernel : times.kernels) {
    if (kernel.alone < 0.005 * times.busy) break;
    const auto calls = static_cast<double>(kernel.calls);
    std::printf("  %9.1f %9.2f %11.2f   %s\n", calls / kSteps, 1e6 * kernel.seconds / calls,
                1e6 * kernel.alone / calls, kernel.name.substr(0, 100).c_str());
  }
  return absl::OkStatus();
}

absl::Status Time(ModelRunner& runner, const Options& options, int64_t batch, int64_t position,
                  int64_t length, const char* what) {
  const int32_t block_size = runner.kv_pool().block_size;
  const StepInputs inputs = MakeStep(batch, position, length, block_size);
  const auto blocks = static_cast<int64_t>(inputs.sequences[0].blocks.size());
  if (batch * blocks > runner.kv_pool().blocks || position + length > runner.context()) {
    std::printf("%-8s %6" PRId64 " x %5" PRId64 " at %6" PRId64 ": does not fit\n", what, batch,
                length, position);
    return absl::OkStatus();
  }
  std::vector<double> seconds;
  cudaProfilerStart();  // what profilers are told to wait for: the steps alone
  for (int64_t i = 0; i < options.steps; ++i) {
    const Clock::time_point begin = Clock::now();
    NIBBLE_RETURN_IF_ERROR(runner.Step(inputs).status());
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  cudaProfilerStop();
  const double median = Median(seconds);
  std::printf("%-8s %6" PRId64 " x %5" PRId64 " at %6" PRId64 ": %9.3f ms, %10.0f tokens/s\n", what,
              batch, length, position, 1e3 * median, static_cast<double>(batch * length) / median);
  if (options.profile) NIBBLE_RETURN_IF_ERROR(PrintProfile(runner, inputs, median));
  std::fflush(stdout);
  return absl::OkStatus();
}

absl::Status Run(Options options) {
  Clock::time_point begin = Clock::now();
  const auto lap = [&begin] {
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    begin = Clock::now();
    return seconds;
  };
  if (options.artifact.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(options.artifact,
                            MakeGeneratedModel(options.model, {Device::Type::kCuda, 0}));
    std::printf("%s, %s: made in %.1f s\n", options.model.shape.c_str(),
                options.model.scheme.c_str(), lap());
  }
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<CudaDecoder> decoder,
                          CudaDecoder::Load(options.artifact, {.e4m3_cache = options.e4m3_cache}));
  const CudaDecoder::Facts facts = decoder->facts();
  std::printf("loaded in %.1f s: weights %.2f GB, cache %.1f GB (%s, %d blocks), %" PRId64
              " graphs of %.0f MB, %" PRId64 " of %" PRId64 " linear groups over true values\n",
              lap(), 1e-9 * static_cast<double>(facts.weight_bytes),
              1e-9 * static_cast<double>(facts.cache_bytes), options.e4m3_cache ? "e4m3" : "bf16",
              facts.blocks, facts.graphs, 1e-6 * static_cast<double>(facts.graph_bytes),
              facts.true_value_groups, facts.groups);
  std::fflush(stdout);
  const std::unique_ptr<ModelRunner> runner = MakeCudaRunner(std::move(decoder));
  for (const int64_t context : options.contexts) {
    for (const int64_t batch : options.batches) {
      NIBBLE_RETURN_IF_ERROR(Time(*runner, options, batch, context, 1, "decode"));
    }
  }
  for (const int64_t length : options.prompts) {
    NIBBLE_RETURN_IF_ERROR(Time(*runner, options, 1, 0, length, "prefill"));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  nibble::Options options;
  CLI::App app("Times decode and prefill steps of a model in true shape on one GPU");
  AddGeneratedModelOptions(app, options.model);
  app.add_option("--artifact", options.artifact, "This one instead of one made of random weights");
  app.add_option("--batches", options.batches, "Sequences of a decode step")->delimiter(',');
  app.add_option("--contexts", options.contexts, "Keys before a decode step")->delimiter(',');
  app.add_option("--prompts", options.prompts, "Tokens of a prefill step")->delimiter(',');
  app.add_flag("--e4m3-cache", options.e4m3_cache, "Keys and values in 8 bits");
  app.add_flag("--profile", options.profile, "Also each kernel's own time");
  app.add_option("--steps", options.steps, "Of each kind; the median counts");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = nibble::Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "step_bench: %s\n", status.ToString().c_str());
  return 1;
}
