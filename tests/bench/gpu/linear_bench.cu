// How long the W4A8 linear takes: microseconds of one product within a CUDA graph over weight
// copies that rotate past the second-level cache. Weights and activations are random.
#include <cuda_bf16.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <deque>
#include <string>
#include <vector>

#include "quant/kernels/cuda/w4a8/linear.h"
#include "tests/bench/gpu/device_buffer.h"
#include "tests/bench/gpu/graph_timer.h"

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

template <class T>
T ValueOrDie(absl::StatusOr<T> value) {
  OrDie(value.status());
  return *std::move(value);
}

// A random matrix and LoRC factors on the device, as Prepare reads them.
class Source {
 public:
  Source(const WeightSpec& spec, int64_t rows, int64_t cols, int rank)
      : codes_(rows * CeilDiv(cols * FormatBits(spec.format), 8),
               FormatBits(spec.format) == 8 ? 0xbfbfbfbfu : ~0u, 0),
        scale_(rows * Groups(spec, cols) * 4, 0, kScaleBits),
        row_scale_(rows * 4, 0, kScaleBits),
        k_(rows * Groups(spec, cols), 0x03030303u, 0),  // M1's exponents, or more than M2's k
        lorc_a_(std::max<int64_t>(1, rows * rank) * 2),
        lorc_b_(std::max<int64_t>(1, cols * rank) * 2) {
    segment_.weight = {.spec = spec,
                       .rows = rows,
                       .cols = cols,
                       .codes = codes_.as<uint8_t>(),
                       .scale = scale_.as<float>(),
                       .exponent = k_.as<int8_t>(),
                       .row_scale = row_scale_.as<float>(),
                       .k = k_.as<uint8_t>()};
    segment_.rank = rank;
    if (rank == 0) return;
    segment_.lorc_a = lorc_a_.as<__nv_bfloat16>();
    segment_.lorc_b = lorc_b_.as<__nv_bfloat16>();
  }
  const Segment& segment() const { return segment_; }

 private:
  static constexpr uint32_t kScaleBits = 0x3c23d70au;  // 0.01f
  static int64_t Groups(const WeightSpec& spec, int64_t cols) {
    return GroupCount(cols, spec.group_size);
  }

  Buffer codes_;
  Buffer scale_;
  Buffer row_scale_;
  Buffer k_;
  Buffer lorc_a_;
  Buffer lorc_b_;
  Segment segment_;
};

double Time(const std::vector<PreparedLinear>& weights, int64_t tokens, const Options& options) {
  const PreparedLinear& first = weights[0];
  const int64_t pitch = RoundUp(first.cols, 16);
  const Buffer x(tokens * pitch, 0xbfbfbfbfu, 0);  // finite E4M3 codes
  const Buffer x_scale(tokens * 4);
  const Buffer y(tokens * first.rows * 2);
  const size_t workspace_bytes = std::max<size_t>(4, WorkspaceBytes(first, tokens));
  const Buffer workspace(workspace_bytes, 0, 0);
  LinearCall call;
  call.x = x.as<uint8_t>();
  call.x_pitch = pitch;
  call.x_scale = x_scale.as<float>();
  call.tokens = tokens;
  call.y = y.as<__nv_bfloat16>();
  call.workspace = workspace.as<void>();
  call.accumulation = options.fast ? Accumulation::kFast : Accumulation::kPromoted;
  call.overlap_previous = options.overlap;
  const int copies = static_cast<int>(weights.size());
  return GraphMicroseconds(ColdLaunches(copies), [&](cudaStream_t stream, int i) {
    return Launch(weights[i % copies], call, stream);
  });
}

void BenchShape(const std::string& text, int rank, const Options& options) {
  long long rows = 0;
  long long cols = 0;
  if (std::sscanf(text.c_str(), "%lldx%lld", &rows, &cols) != 2) {
    OrDie(absl::InvalidArgumentError("--shapes: found " + text + ", expected ROWSxCOLS"));
  }
  const WeightSpec spec = {.format = ValueOrDie(ParseFormat(options.format)),
                           .group_size = options.group_size,
                           .constraint = ValueOrDie(ParseScaleConstraint(options.constraint))};
  OrDie(spec.Validate());
  const Source source(spec, rows, cols, rank);
  const size_t bytes = ValueOrDie(PreparedBytes({source.segment()}));
  std::deque<Buffer> memories;
  std::vector<PreparedLinear> weights;
  for (int i = 0; i < ColdCopies(bytes); ++i) {
    memories.emplace_back(bytes);
    weights.push_back(ValueOrDie(Prepare({source.segment()}, memories.back().as<void>(), nullptr)));
  }
  OrDie(cudaDeviceSynchronize());
  std::printf("%s %s %s group %d: %zu B of weights\n", text.c_str(), options.format.c_str(),
              options.constraint.c_str(), options.group_size, bytes);
  for (const int64_t tokens : options.tokens) {
    const double us = Time(weights, tokens, options);
    std::printf("%s M %lld rank %d %s: %.2f us ", text.c_str(), static_cast<long long>(tokens),
                rank, options.fast ? "fast" : "promoted", us);
    if (tokens <= 64) {
      std::printf("%.3f TB/s\n", static_cast<double>(bytes) / us / 1e6);
    } else {
      std::printf("%.0f TFLOP/s\n", 2e-6 * static_cast<double>(tokens * rows * cols) / us);
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
