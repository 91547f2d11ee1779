// What a model does on this machine through the engine, no RPC: tokens per second of one and of
// many streams and of a long prompt, time to the first token with and without a known prefix, and
// the memory that it takes. Prompts are random tokens; every figure is the median of kRepeats.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <random>
#include <string>
#include <thread>

#include "absl/synchronization/blocking_counter.h"
#include "quant/base/status_macros.h"
#include "server/engine/engine.h"

namespace nibble {
namespace {

constexpr int kRepeats = 5;
constexpr int64_t kKvBytes = int64_t{512} << 20;
constexpr int64_t kPrefix = 1000;

using Clock = std::chrono::steady_clock;

struct Options {
  std::string model;
  std::string compute = "bf16";
  int64_t prompt = 1024;
  int64_t tokens = 128;
  int64_t streams = 8;
};

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

double Median(const std::function<double()>& measure) {
  std::vector<double> values;
  for (int i = 0; i < kRepeats; ++i) values.push_back(measure());
  std::ranges::sort(values);
  return values[kRepeats / 2];
}

// A value of /proc/self/status in MB.
double StatusMegabytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(name + ":")) return std::stod(line.substr(name.size() + 1)) * 1024 / 1e6;
  }
  return 0;
}

double FolderMegabytes(const std::filesystem::path& folder) {
  double bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    bytes += static_cast<double>(entry.file_size());
  }
  return bytes / 1e6;
}

class Bench {
 public:
  explicit Bench(std::unique_ptr<ModelRunner> runner)
      : engine_(Engine::Create(std::move(runner), {})) {}

  std::vector<int32_t> Prompt(int64_t length) {
    std::vector<int32_t> tokens(length);
    const auto vocab = static_cast<uint64_t>(engine_->runner().vocab_size());
    for (int32_t& token : tokens) token = static_cast<int32_t>(random_() % vocab);
    return tokens;
  }

  // Seconds from the submission to the first token, and from the last stream's first token to the
  // last token of all, with the tokens that came in that time.
  struct Timing {
    double first = 0;
    double rest = 0;
    int64_t rest_tokens = 0;
  };
  Timing Run(const std::vector<std::vector<int32_t>>& prompts, int64_t tokens) {
    const Clock::time_point start = Clock::now();
    std::vector<std::vector<Clock::time_point>> times(prompts.size());
    absl::BlockingCounter left(static_cast<int>(prompts.size()));
    for (size_t i = 0; i < prompts.size(); ++i) {
      EngineRequest request;
      request.prompt = prompts[i];
      request.max_tokens = tokens;
      const auto id = engine_->Submit(std::move(request), [&, i](const EngineEvent& event) {
        for (size_t t = 0; t < event.tokens.size(); ++t) times[i].push_back(Clock::now());
        if (event.finish != FinishReason::kNone) left.DecrementCount();
        return Flow::kContinue;
      });
      if (!id.ok()) {
        std::cerr << id.status() << '\n';
        std::exit(1);
      }
    }
    left.Wait();
    Clock::time_point first = start;
    Clock::time_point last = start;
    for (const auto& stream : times) {
      first = std::max(first, stream.front());
      last = std::max(last, stream.back());
    }
    Timing timing{Seconds(first - start), Seconds(last - first), 0};
    for (const auto& stream : times) {
      timing.rest_tokens +=
          std::ranges::count_if(stream, [&](Clock::time_point time) { return time > first; });
    }
    return timing;
  }

 private:
  static constexpr uint64_t kSeed = 20261126;
  std::mt19937_64 random_{kSeed};
  const std::unique_ptr<Engine> engine_;
};

void PrintSpeed(Bench& bench, const Options& options) {
  const double prefill = Median([&] {
    return static_cast<double>(options.prompt) / bench.Run({bench.Prompt(options.prompt)}, 1).first;
  });
  std::printf("prefill of %lld tokens      %8.1f tokens/s\n",
              static_cast<long long>(options.prompt), prefill);
  const auto decode = [&](int64_t streams) {
    return Median([&] {
      std::vector<std::vector<int32_t>> prompts;
      for (int64_t i = 0; i < streams; ++i) prompts.push_back(bench.Prompt(16));
      const Bench::Timing timing = bench.Run(prompts, options.tokens);
      return static_cast<double>(timing.rest_tokens) / timing.rest;
    });
  };
  const double one = decode(1);
  const double many = decode(options.streams);
  std::printf("decode, one stream          %8.1f tokens/s\n", one);
  std::printf("decode, %lld streams in all    %8.1f tokens/s, %.2f x one\n",
              static_cast<long long>(options.streams), many, many / one);
}

void PrintPrefix(Bench& bench) {
  std::vector<int32_t> prefix;
  const auto ask = [&] {
    std::vector<int32_t> prompt = prefix;
    for (const int32_t token : bench.Prompt(16)) prompt.push_back(token);
    return bench.Run({prompt}, 1).first * 1e3;
  };
  const double cold = Median([&] {
    prefix = bench.Prompt(kPrefix);
    return ask();
  });
  const double warm = Median(ask);
  std::printf("first token after a %lld-token prefix: %.1f ms, known %.1f ms, %.2f of it\n",
              static_cast<long long>(kPrefix), cold, warm, warm / cold);
}

absl::Status Run(const Options& options) {
  const double before = StatusMegabytes("VmRSS");
  const Clock::time_point start = Clock::now();
  NIBBLE_ASSIGN_OR_RETURN(
      std::unique_ptr<ModelRunner> runner,
      MakeLocalRunner(options.model,
                      {.compute = options.compute == "f32" ? Compute::kF32 : Compute::kBf16,
                       .kv_bytes = kKvBytes}));
  const double seconds = Seconds(Clock::now() - start);
  const double weights = static_cast<double>(runner->weight_bytes()) / 1e6;
  const double loaded = StatusMegabytes("VmRSS");
  Bench bench(std::move(runner));
  bench.Run({bench.Prompt(16)}, 8);
  const double growth = StatusMegabytes("VmRSS") - before;
  const double artifact = FolderMegabytes(options.model);
  std::printf("%s, %u cores\n", options.model.c_str(), std::thread::hardware_concurrency());
  std::printf("loaded in %.2f s; artifact %.1f MB, weights %.1f MB\n", seconds, artifact, weights);
  std::printf(
      "resident memory grew by %.1f MB at the load, by %.1f MB with the first request, "
      "%.2f x the artifact; peak %.1f MB\n",
      loaded - before, growth, growth / artifact, StatusMegabytes("VmHWM"));
  PrintSpeed(bench, options);
  PrintPrefix(bench);
  return absl::OkStatus();
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  nibble::Options options;
  CLI::App app("Measures one model through the engine");
  app.add_option("model", options.model, "Artifact or checkpoint folder")->required();
  app.add_option("--compute", options.compute, "bf16 or f32")
      ->check(CLI::IsMember({"bf16", "f32"}));
  app.add_option("--prompt", options.prompt, "Tokens of the long prompt");
  app.add_option("--tokens", options.tokens, "Tokens of a stream");
  app.add_option("--streams", options.streams, "Streams at once");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = nibble::Run(options);
  if (!status.ok()) std::cerr << status << '\n';
  return status.ok() ? 0 : 1;
}
