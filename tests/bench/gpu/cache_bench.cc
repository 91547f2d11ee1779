// What the cache's format costs in perplexity: one artifact through the GPU's runner, as
// EvaluatePerplexity of a service goes, over a bf16 cache and over an E4M3 one.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/pipeline/perplexity.h"
#include "server/runner/cuda_runner.h"

namespace nibble {
namespace {

constexpr int64_t kCacheBytes = int64_t{1} << 30;

struct Options {
  std::filesystem::path artifact;
  std::vector<std::string> corpora;
  int64_t window = 2048;
  int64_t windows = 0;
  int64_t chunk = 1024;
};

using Windows = std::vector<std::vector<int32_t>>;

// The sum of the negative logprobs of a window's tokens but the first, fed in chunks, so that most
// keys and values come from the cache.
absl::StatusOr<double> Score(ModelRunner& runner, const std::vector<int32_t>& window,
                             int64_t chunk) {
  const int64_t block_size = runner.kv_pool().block_size;
  const auto length = static_cast<int64_t>(window.size());
  double sum = 0;
  for (int64_t begin = 0; begin < length; begin += chunk) {
    const int64_t end = std::min(length, begin + chunk);
    SequenceInput sequence;
    sequence.tokens.assign(window.begin() + begin, window.begin() + end);
    sequence.position = begin;
    sequence.score_prompt = true;
    if (end < length) sequence.score_next = window[end];
    for (int64_t at = 0; at < end; at += block_size) {
      sequence.blocks.push_back(static_cast<int32_t>(at / block_size));
    }
    NIBBLE_ASSIGN_OR_RETURN(const StepOutputs outputs, runner.Step({{std::move(sequence)}}));
    for (const TokenLogprob& logprob : outputs.sequences[0].prompt_logprobs) sum -= logprob.logprob;
  }
  return sum;
}

absl::StatusOr<double> PerplexityOf(ModelRunner& runner, const Windows& windows, int64_t chunk) {
  double sum = 0;
  int64_t count = 0;
  for (const std::vector<int32_t>& window : windows) {
    NIBBLE_ASSIGN_OR_RETURN(const double loss, Score(runner, window, chunk));
    sum += loss;
    count += static_cast<int64_t>(window.size()) - 1;
  }
  return std::exp(sum / static_cast<double>(count));
}

absl::Status Run(const Options& options) {
  for (const std::string& corpus : options.corpora) {
    NIBBLE_ASSIGN_OR_RETURN(Windows windows,
                            EvaluationWindows(options.artifact, corpus, options.window));
    if (options.windows > 0 && options.windows < static_cast<int64_t>(windows.size())) {
      windows.resize(options.windows);
    }
    double plain = 0;
    for (const bool e4m3 : {false, true}) {
      NIBBLE_ASSIGN_OR_RETURN(
          std::unique_ptr<CudaDecoder> decoder,
          CudaDecoder::Load(options.artifact, {.e4m3_cache = e4m3, .kv_bytes = kCacheBytes}));
      const std::unique_ptr<ModelRunner> runner = MakeCudaRunner(std::move(decoder));
      NIBBLE_ASSIGN_OR_RETURN(const double perplexity,
                              PerplexityOf(*runner, windows, options.chunk));
      if (!e4m3) plain = perplexity;
      std::printf("%s, %s cache: %.4f (%+.2f %%), %zu windows of %ld\n", corpus.c_str(),
                  e4m3 ? "E4M3" : "bf16", perplexity, 100 * (perplexity / plain - 1),
                  windows.size(), options.window);
      std::fflush(stdout);
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  nibble::Options options;
  CLI::App app("Perplexity of an artifact over a bf16 cache and over an E4M3 one, on one GPU");
  app.add_option("artifact", options.artifact, "Artifact folder")->required();
  app.add_option("--corpus", options.corpora, "A text; repeated")->required();
  app.add_option("--window", options.window, "Tokens of a window");
  app.add_option("--windows", options.windows, "The first so many; 0: all");
  app.add_option("--chunk", options.chunk, "Tokens of a window at a time");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = nibble::Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "cache_bench: %s\n", status.ToString().c_str());
  return 1;
}
