// What a model does on this machine through the engine, no RPC: tokens per second of one and of
// many streams and of a long prompt, time to the first token with and without a known prefix, and
// the memory that it takes. Prompts are random tokens; every figure is the median of kRepeats. On a
// machine that others use too, tokens per second of processor time say more: OMP_NUM_THREADS=1.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
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

// Of this process, all threads.
double ProcessorSeconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// Tokens per second, and per second of processor time.
struct Speed {
  double wall = 0;
  double processor = 0;
};

Speed MedianSpeed(const std::function<Speed()>& measure) {
  std::vector<double> wall;
  std::vector<double> processor;
  for (int i = 0; i < kRepeats; ++i) {
    const Speed speed = measure();
    wall.push_back(speed.wall);
    processor.push_back(speed.processor);
  }
  return {Median(wall), Median(processor)};
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

  struct Moment {
    Clock::time_point time = Clock::now();
    double processor = ProcessorSeconds();
  };
  // From the submission to the last stream's first token, and from there to the last token of all,
  // with the tokens that came in that time.
  struct Timing {
    Speed first;  // seconds
    Speed rest;
    double rest_tokens = 0;
  };
  Timing Run(const std::vector<std::vector<int32_t>>& prompts, int64_t tokens) {
    const Moment start;
    std::vector<std::vector<Moment>> moments(prompts.size());
    absl::BlockingCounter left(static_cast<int>(prompts.size()));
    for (size_t i = 0; i < prompts.size(); ++i) {
      EngineRequest request;
      request.prompt = prompts[i];
      request.max_tokens = tokens;
      const auto id = engine_->Submit(std::move(request), [&, i](const EngineEvent& event) {
        for (size_t t = 0; t < event.tokens.size(); ++t) moments[i].emplace_back();
        if (event.finish != FinishReason::kNone) left.DecrementCount();
        return Flow::kContinue;
      });
      if (!id.ok()) {
        std::cerr << id.status() << '\n';
        std::exit(1);
      }
    }
    left.Wait();
    Moment first = start;
    Moment last = start;
    const auto later = [](const Moment& a, const Moment& b) { return a.time > b.time ? a : b; };
    for (const auto& stream : moments) {
      first = later(first, stream.front());
      last = later(last, stream.back());
    }
    Timing timing{Between(start, first), Between(first, last)};
    for (const auto& stream : moments) {
      for (const Moment& moment : stream) timing.rest_tokens += moment.time > first.time ? 1 : 0;
    }
    return timing;
  }

 private:
  static Speed Between(const Moment& a, const Moment& b) {
    return {Seconds(b.time - a.time), b.processor - a.processor};
  }

  static constexpr uint64_t kSeed = 20261126;
  std::mt19937_64 random_{kSeed};
  const std::unique_ptr<Engine> engine_;
};

void Print(const std::string& what, const Speed& speed) {
  std::printf("%-28s %8.1f tokens/s, %8.1f a processor second\n", what.c_str(), speed.wall,
              speed.processor);
  std::fflush(stdout);
}

void PrintSpeed(Bench& bench, const Options& options) {
  const Speed prefill = MedianSpeed([&] {
    const Speed took = bench.Run({bench.Prompt(options.prompt)}, 1).first;
    const auto tokens = static_cast<double>(options.prompt);
    return Speed{tokens / took.wall, tokens / took.processor};
  });
  Print("prefill of " + std::to_string(options.prompt) + " tokens", prefill);
  const auto decode = [&](int64_t streams) {
    return MedianSpeed([&] {
      std::vector<std::vector<int32_t>> prompts;
      for (int64_t i = 0; i < streams; ++i) prompts.push_back(bench.Prompt(16));
      const Bench::Timing timing = bench.Run(prompts, options.tokens);
      return Speed{timing.rest_tokens / timing.rest.wall,
                   timing.rest_tokens / timing.rest.processor};
    });
  };
  const Speed one = decode(1);
  Print("decode, one stream", one);
  const Speed many = decode(options.streams);
  Print("decode, " + std::to_string(options.streams) + " streams in all", many);
  std::printf("%lld streams to one: %.2f\n", static_cast<long long>(options.streams),
              many.wall / one.wall);
}

void PrintPrefix(Bench& bench) {
  std::vector<int32_t> prefix;
  const auto ask = [&] {
    std::vector<int32_t> prompt = prefix;
    for (const int32_t token : bench.Prompt(16)) prompt.push_back(token);
    return bench.Run({prompt}, 1).first.wall * 1e3;
  };
  std::vector<double> cold;
  std::vector<double> warm;
  for (int i = 0; i < kRepeats; ++i) {
    prefix = bench.Prompt(kPrefix);
    cold.push_back(ask());
    warm.push_back(ask());
  }
  std::printf("first token after a %lld-token prefix: %.1f ms, known %.1f ms, %.2f of it\n",
              static_cast<long long>(kPrefix), Median(cold), Median(warm),
              Median(warm) / Median(cold));
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
