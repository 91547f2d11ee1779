// Times QuantizeModel on generated random weights of true shapes (synthetic_model.h): per phase and
// layer, with the peaks of device and host memory. Prints what it ran, and extrapolates nothing.
#include <ATen/detail/CUDAHooksInterface.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <map>
#include <stop_token>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "quant/base/status_macros.h"
#include "quant/pipeline/pipeline.h"
#include "tests/bench/model/scheme.h"
#include "tests/fixtures/synthetic_model.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string shape = "llama-7b";
  std::string scheme = "w=e2m1,a=e4m3,group=256,scale=m2,lorc=8";
  std::string device = "cuda:0";
  std::string compute = "bf16";
  fs::path folder = "/dev/shm/nibble-bench";
  int64_t layers = 0;  // 0: all
  int64_t windows = 128;
  int64_t window = 2048;
};

// Anonymous memory of the process: not the mapped checkpoint, which is page cache.
int64_t AnonymousBytes() {
  std::ifstream lines("/proc/self/status");
  std::string line;
  while (std::getline(lines, line)) {
    int64_t kib = 0;
    if (std::sscanf(line.c_str(), "RssAnon: %" SCNd64, &kib) == 1) return kib * 1024;
  }
  return 0;
}

// The most of it, looked at every few milliseconds.
class AnonymousPeak {
 public:
  int64_t bytes() const { return peak_; }

 private:
  void Watch(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      peak_ = std::max(peak_.load(), AnonymousBytes());
      absl::SleepFor(absl::Milliseconds(5));
    }
  }

  std::atomic<int64_t> peak_ = AnonymousBytes();
  std::jthread thread_{[this](const std::stop_token& stop) { Watch(stop); }};
};

double Gib(int64_t bytes) { return static_cast<double>(bytes) / (int64_t{1} << 30); }

void PrintGib(const char* what, int64_t bytes) {
  std::printf("  %-30s %8.2f GiB\n", what, Gib(bytes));
}

// Seconds between the progress calls, by what the pipeline did in them. The device is waited for at
// each call, so that its work is counted where it was asked for.
class Stopwatch {
 public:
  explicit Stopwatch(const Device& device) : device_(device) {}

  absl::Status operator()(const Progress& progress) {
    if (device_.is_cuda()) {
      at::detail::getCUDAHooks().deviceSynchronize(static_cast<c10::DeviceIndex>(device_.index));
    }
    const absl::Time now = absl::Now();
    seconds_[doing_] += absl::ToDoubleSeconds(now - last_);
    last_ = now;
    if (!progress.note.empty()) std::printf("  note: %s\n", progress.note.c_str());
    if (progress.finished != nullptr) Finish(*progress.finished);
    doing_ = Next(progress);
    return absl::OkStatus();
  }

  void Print() const {
    for (const auto& [what, seconds] : seconds_) {
      std::printf("  %-30s %8.2f s\n", what.c_str(), seconds);
    }
    std::printf("  %-30s %8.2f s\n", "of it the linears", solve_seconds_);
    PrintGib("peak device memory", peak_device_);
  }

 private:
  // A layer's solves end with the last linear; then its outputs go on.
  void Finish(const LayerReport& layer) {
    double solves = 0;
    for (const LinearReport& linear : layer.linears) solves += linear.seconds;
    solve_seconds_ += solves;
    peak_device_ = layer.peak_device_bytes;
    if (layer.layer < 2 || layer.layer % 8 == 7) {
      std::printf("  layer %3" PRId64 " %6.2f s, of it linears %5.2f s\n", layer.layer,
                  layer.seconds, solves);
    }
  }

  static std::string Next(const Progress& progress) {
    if (progress.finished != nullptr) return "load a layer";
    switch (progress.phase) {
      case Phase::kLoading:
        return "hash, embed, load first";
      case Phase::kCalibrating:
        return "calibrate";
      case Phase::kQuantizing:
        return "solve, LoRC, propagate, write";
      case Phase::kWriting:
        break;
    }
    return "write the rest";
  }

  const Device device_;
  absl::Time last_ = absl::Now();
  std::string doing_ = "open";
  std::map<std::string, double> seconds_;
  double solve_seconds_ = 0;
  int64_t peak_device_ = 0;
};

absl::Status Run(const Options& options) {
  NIBBLE_ASSIGN_OR_RETURN(ModelShape shape, FindShape(options.shape));
  NIBBLE_ASSIGN_OR_RETURN(QuantizeSpec spec, ParseScheme(options.scheme));
  NIBBLE_ASSIGN_OR_RETURN(const Device device, ParseDevice(options.device));
  if (options.layers > 0) shape.layers = std::min(shape.layers, options.layers);
  spec.compute = options.compute == "f32" ? Compute::kF32 : Compute::kBf16;
  spec.calibration = {.corpus = options.folder / "corpus.txt",
                      .windows = options.windows,
                      .window_tokens = options.window};
  const fs::path model = options.folder / options.shape;
  fs::remove_all(options.folder);
  const absl::Time began = absl::Now();
  NIBBLE_RETURN_IF_ERROR(WriteSyntheticModel(shape, model));
  NIBBLE_RETURN_IF_ERROR(
      WriteSyntheticCorpus(options.windows * options.window, spec.calibration.corpus));
  const double billions = static_cast<double>(shape.layers * shape.linear_parameters()) * 1e-9;
  std::printf("%s, %" PRId64 " layers, %.3f G linear parameters, random weights made in %.1f s\n",
              options.shape.c_str(), shape.layers, billions,
              absl::ToDoubleSeconds(absl::Now() - began));
  std::printf("%s on %s, %s, %" PRId64 " windows of %" PRId64 "\n", options.scheme.c_str(),
              options.device.c_str(), options.compute.c_str(), options.windows, options.window);
  malloc_trim(0);  // what making the model has left
  const int64_t before = AnonymousBytes();
  const AnonymousPeak peak;
  Stopwatch stopwatch(device);
  NIBBLE_ASSIGN_OR_RETURN(
      const QuantizeSummary summary,
      QuantizeModel(spec, model, options.folder / "artifact", std::ref(stopwatch), device));
  stopwatch.Print();
  malloc_trim(0);
  PrintGib("anonymous memory before", before);
  PrintGib("at its peak", peak.bytes());
  PrintGib("after, the libraries' own", AnonymousBytes());
  std::printf("  %-30s %8.2f s, %.2f s a billion parameters\n", "in all", summary.seconds,
              summary.seconds / billions);
  std::printf("  mean output error %.5f, %.3f bits a linear weight\n", summary.mean_output_error,
              summary.linear_bits_per_weight);
  fs::remove_all(options.folder);
  return absl::OkStatus();
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  nibble::Options options;
  CLI::App app("Times the quantization of a model of random weights in true shape");
  app.add_option("--shape", options.shape, "llama-3b, llama-7b, llama-13b, opt-1.3b, opt-6.7b");
  app.add_option("--layers", options.layers, "Only so many layers (0: all)");
  app.add_option("--scheme", options.scheme, "As scheme.h says");
  app.add_option("--device", options.device, "cpu, cuda:0, ...");
  app.add_option("--compute", options.compute, "bf16 or f32");
  app.add_option("--windows", options.windows, "Calibration windows");
  app.add_option("--window", options.window, "Tokens of a window");
  app.add_option("--folder", options.folder, "Where model and artifact are made; emptied");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = nibble::Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "quantize_bench: %s\n", status.ToString().c_str());
  return 1;
}
