// The CPU's linear on packed weights and E4M3 activations: GFLOP/s by shape, format and tokens, on
// as many threads as LibTorch uses. NIBBLE_CPU_ISA picks the instructions.
#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "quant/kernels/cpu/isa.h"
#include "quant/kernels/cpu/parallel.h"
#include "quant/kernels/kernels.h"

namespace nibble {
namespace {

constexpr int kRepeats = 15;
// Together beyond a core's caches, so that weights are read as a model's are.
constexpr int64_t kWeightsAtOnce = int64_t{32} << 20;

// Codes 0 .. 3 and equal scales: what is multiplied does not change the time.
QuantizedMatrix MakeMatrix(Format format, int64_t rows, int64_t cols) {
  QuantizedMatrix matrix = MakeQuantizedMatrix({.format = format, .group_size = 64}, rows, cols);
  for (size_t i = 0; i < matrix.codes.size(); ++i) matrix.codes[i] = (i * 7) % 4 * 0x11;
  std::ranges::fill(matrix.row_scale, 0.5f);
  return matrix;
}

void Measure(Format format, int64_t rows, int64_t cols) {
  std::vector<LinearWeights> copies(std::max<int64_t>(kWeightsAtOnce / (rows * cols), 1));
  const QuantizedMatrix matrix = MakeMatrix(format, rows, cols);
  for (LinearWeights& weights : copies) Arrange(&matrix, weights);
  std::printf("%s %5lld x %5lld:", std::string(FormatName(format)).c_str(),
              static_cast<long long>(rows), static_cast<long long>(cols));
  for (const int64_t tokens : {1, 2, 8, 64, 512}) {
    const LinearInput x =
        RoundActivations(ActivationSpec{.format = Format::kE4M3}, at::ones({tokens, cols}));
    const int64_t calls = std::max<int64_t>(static_cast<int64_t>(copies.size()) / tokens, 1);
    double best = 1e9;
    for (int i = 0; i < kRepeats; ++i) {
      const auto start = std::chrono::steady_clock::now();
      for (int64_t call = 0; call < calls; ++call) Linears({&copies[call]}, x);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      best = std::min(best, took.count() / static_cast<double>(calls));
    }
    const double weights = static_cast<double>(rows * cols);
    std::printf("  M=%-3lld %6.1f GFLOP/s", static_cast<long long>(tokens),
                2 * weights * static_cast<double>(tokens) / best / 1e9);
  }
  std::printf("\n");
}

}  // namespace
}  // namespace nibble

int main() {
  using nibble::Format;
  std::printf("%s, %d threads, groups of 64, M tokens, best of %d\n",
              std::string(nibble::IsaName(nibble::ActiveIsa())).c_str(), nibble::ThreadCount(),
              nibble::kRepeats);
  for (const Format format : {Format::kE2M1, Format::kE4M3}) {
    for (const auto& [rows, cols] :
         {std::pair<int64_t, int64_t>{576, 576}, {1536, 576}, {576, 1536}, {4096, 4096}}) {
      nibble::Measure(format, rows, cols);
    }
  }
}
