// A job's running time: its operations over what the hardware does of them in a second.
#include <algorithm>

#include "quant/pipeline/job_shapes.h"

namespace nibble {
namespace {

// FLOP/s, weights/s and bytes/s that the pipeline reaches, not the hardware's peaks.
struct Rates {
  double forward;   // products of the forward pass
  double hessian;   // sums of x x^T
  double products;  // f32: products with H and with the factor
  double factor;    // f64: Cholesky factors and inverses, products with a rotation
  double spectral;  // f64: LoRC's products and eigenvectors
  double codes;     // weights rounded in GPTQ's column loop, or by RTN
  double searched;  // weights times candidate scales
  double files;     // bytes read or written, with their sums
};
// Of one AVX2 core with LibTorch's MKL: 70 GFLOP/s in large f32 products (139 on two), half of it
// in f64 and in strips.
constexpr Rates kCore = {.forward = 60e9,
                         .hessian = 50e9,
                         .products = 50e9,
                         .factor = 15e9,
                         .spectral = 12e9,
                         .codes = 40e6,
                         .searched = 100e6,
                         .files = 0.4e9};
// Of one H200, fitted to LLaMA-7B's and OPT-1.3B's shapes (tests/bench/RESULTS.md): bf16 products
// at half of the peak, f32 ones at 60%. LoRC iterates in f32 there, which takes a tenth of the
// operations counted here. A job with compute f32 does the first two at the rate of `products`.
constexpr Rates kHopper = {.forward = 500e12,
                           .hessian = 350e12,
                           .products = 40e12,
                           .factor = 20e12,
                           .spectral = 40e12,
                           .codes = 3e9,
                           .searched = 20e9,
                           .files = 1.5e9};

// Cores help files little: sums of one file are one thread's.
Rates OfCores(int threads) {
  const double n = threads;
  return {n * kCore.forward,  n * kCore.hessian, n * kCore.products, n * kCore.factor,
          n * kCore.spectral, n * kCore.codes,   n * kCore.searched, kCore.files};
}

Rates OfJob(const JobShapes& job, int threads) {
  Rates rates = job.gpu ? kHopper : OfCores(threads);
  if (job.gpu && job.spec.compute == Compute::kF32) rates.forward = rates.hessian = rates.products;
  return rates;
}

double Cubed(int64_t n) {
  return static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
}

// One pass of the windows through a layer; causal attention counts half.
double ForwardFlops(const JobShapes& job) {
  const auto tokens = static_cast<double>(job.tokens);
  const auto attention = static_cast<double>(job.config.heads * job.config.head_dim *
                                             job.spec.calibration.window_tokens);
  return tokens * (2.0 * static_cast<double>(job.layer_weights) + 2.0 * attention);
}

double LayerSeconds(const JobShapes& job, const Rates& rates) {
  double seconds = 0;
  if (job.calibrates()) seconds += 2 * ForwardFlops(job) / rates.forward;
  for (const auto& [group, cols] : job.inputs) {
    const double squared = static_cast<double>(cols) * static_cast<double>(cols);
    // Its upper half, then a factor, its inverse and the inverse's factor.
    seconds += static_cast<double>(job.tokens) * squared / rates.hessian;
    if (job.solves()) seconds += 4.0 / 3 * Cubed(cols) / rates.factor;
  }
  return seconds;
}

double SearchSeconds(const JobShapes& job, const Rates& rates, double values) {
  if (job.spec.scale_search == ScaleSearch::kNone) return 0;
  const ScaleConstraint constraint = job.spec.weights->constraint;
  const int candidates = (constraint == ScaleConstraint::kM1 ? 1 : kScaleFractions) *
                         (constraint == ScaleConstraint::kNone ? 1 : kScaleExponents);
  return candidates * values / rates.searched;
}

double LorcSeconds(const JobShapes& job, const Rates& rates, const LinearInfo& linear) {
  if (job.spec.lorc_rank == 0) return 0;
  const double values = static_cast<double>(linear.rows) * static_cast<double>(linear.cols);
  const int64_t side = std::min(linear.rows, linear.cols);
  double spectral = 2 * values * static_cast<double>(side) + 9 * Cubed(side);
  if (job.spec.lorc_metric == LorcMetric::kInput) {
    spectral += 2 * values * static_cast<double>(linear.cols) + Cubed(linear.cols) / 3;
  }
  return spectral / rates.spectral;
}

double LinearSeconds(const JobShapes& job, const Rates& rates, const LinearInfo& linear) {
  const double values = static_cast<double>(linear.rows) * static_cast<double>(linear.cols);
  const double wide = values * static_cast<double>(linear.cols);
  const double errors = job.calibrates() ? 4 * wide / rates.products : 0;  // E H and W H
  double iteration = values / rates.codes + SearchSeconds(job, rates, values);
  if (job.solves()) iteration += wide / rates.products;  // blocks' errors, spread
  iteration += LorcSeconds(job, rates, linear);
  const int iterations = job.spec.lorc_iterations;
  return iterations * iteration + (iterations > 1 ? iterations + 1 : 1) * errors;
}

// Products with Q: every linear and both ends; the ends once more to calibrate.
double RotationFlops(const JobShapes& job) {
  if (!job.rotates()) return 0;
  double values = static_cast<double>(job.config.layers) * static_cast<double>(job.layer_weights);
  values += (job.calibrates() ? 2.0 : 1.0) * static_cast<double>(job.ends_weights);
  return 2 * values * static_cast<double>(job.config.hidden);
}

}  // namespace

double CountSeconds(const JobShapes& job, int threads, int64_t artifact_bytes) {
  const Rates rates = OfJob(job, threads);
  double seconds = static_cast<double>(job.config.layers) * LayerSeconds(job, rates);
  for (const LinearInfo& linear : job.linears) {
    if (job.spec.weights && !job.excluded.contains(linear.name)) {
      seconds += LinearSeconds(job, rates, linear);
    }
  }
  seconds += RotationFlops(job) / rates.factor;
  const int64_t bytes = 2 * job.source_bytes + job.corpus_bytes + artifact_bytes;
  return seconds + static_cast<double>(bytes) / rates.files;
}

}  // namespace nibble
