// How long the W4A8 linear takes: microseconds of one product within a CUDA graph over weight
// copies that rotate past the second-level cache. Weights and activations are random.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "quant/kernels/cuda/w4a8/linear.h"
#include "tests/bench/gpu/cold_linear.h"

namespace nibble::w4a8 {
namespace {

struct Options {
  std::vector<std::string> shapes = {"8192x8192", "12288x4096", "4096x4096", "22016x4096",
                                     "4096x11008"};
  std::vector<int64_t> tokens = {1, 4, 16, 32, 64, 128, 256, 512, 2048, 8192};
  std::vector<int> ranks = {0};
  std::string format = "e2m1";
  std::string constraint = "m2";
  int group_size = 128;
  bool fast = false;
  bool overlap = false;
};

double Time(const ColdLinear& linear, int64_t tokens, const Options& options) {
  CallBuffers buffers(linear.first(), tokens, WorkspaceBytes(linear.first(), tokens));
  LinearCall call = buffers.call();
  call.accumulation = options.fast ? Accumulation::kFast : Accumulation::kPromoted;
  call.overlap_previous = options.overlap;
  return linear.Microseconds([&](const PreparedLinear& weights, cudaStream_t stream) {
    return Launch(weights, call, stream);
  });
}

void BenchShape(const std::string& text, int rank, const Options& options) {
  const WeightSpec spec = {.format = ValueOrDie(ParseFormat(options.format)),
                           .group_size = options.group_size,
                           .constraint = ValueOrDie(ParseScaleConstraint(options.constraint))};
  const Size size = ParseShape(text);
  const ColdLinear linear(spec, size, rank);
  std::printf("%s %s %s group %d: %zu B of weights\n", text.c_str(), options.format.c_str(),
              options.constraint.c_str(), options.group_size, linear.bytes());
  for (const int64_t tokens : options.tokens) {
    const double us = Time(linear, tokens, options);
    std::printf("%s M %lld rank %d %s: %.2f us ", text.c_str(), static_cast<long long>(tokens),
                rank, options.fast ? "fast" : "promoted", us);
    if (tokens <= 64) {
      std::printf("%.3f TB/s\n", static_cast<double>(linear.bytes()) / us / 1e6);
    } else {
      std::printf("%.0f TFLOP/s\n",
                  2e-6 * static_cast<double>(tokens * size.rows * size.cols) / us);
    }
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace nibble::w4a8

int main(int argc, char** argv) {
  nibble::w4a8::Options options;
  CLI::App app(
      "Microseconds of the W4A8 linear within a CUDA graph, weights cold, on the first GPU; up to "
      "64 tokens with\nthe rate at which it reads its weights, then with its operations.\n"
      "example: build/cuda/bin/linear_bench --shapes 8192x8192 --m 1,16,64 --ranks 0,16",
      "linear_bench");
  app.add_option("--shapes", options.shapes, "ROWSxCOLS,...")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--m", options.tokens, "numbers of tokens")
      ->delimiter(',')
      ->check(CLI::Range(1, 16384))
      ->capture_default_str();
  app.add_option("--ranks", options.ranks, "ranks of LoRC")
      ->delimiter(',')
      ->check(CLI::Range(0, 128))
      ->capture_default_str();
  app.add_option("--format", options.format, "e2m1, e3m0 or e4m3")->capture_default_str();
  app.add_option("--constraint", options.constraint, "m1, m2 or none")->capture_default_str();
  app.add_option("--group", options.group_size, "columns per scale, -1 for the whole row")
      ->capture_default_str();
  app.add_option("--fast", options.fast, "1: sums of the whole of K in the tensor cores (0)");
  app.add_option("--overlap", options.overlap, "1: a launch begins before the last one ends (0)");
  CLI11_PARSE(app, argc, argv);
  for (const std::string& shape : options.shapes) {
    for (const int rank : options.ranks) nibble::w4a8::BenchShape(shape, rank, options);
  }
  return 0;
}
