// What the GPU's sampler computes, defined exactly: host and device agree bit for bit. Free of CUDA
// and LibTorch.
//
// A row's tokens are ranked by falling logit, of equal ones the lower id first. With `depth` the
// bits by which a token's probability lies below the first's, to 2^-17 bits (closer ones are
// equal), its weight is an integer near 2^40 * 2^-depth, 0 from 40 bits on. Each of top-k, min-p
// and top-p keeps a head of the ranking: top-k the first k, min-p those of at least min_p times the
// first's probability, top-p the least that holds top_p of top-k's weight. Of the shortest of them
// the token is drawn in which `UniformBits * weight / 2^53` falls.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "absl/status/statusor.h"

#ifdef __CUDACC__
#define NIBBLE_HOST_DEVICE __host__ __device__
#else
#define NIBBLE_HOST_DEVICE
#endif

namespace nibble {

inline constexpr int kDepthFraction = 17;
// Depth of weight 0, in 2^-17 bits.
inline constexpr uint32_t kDepthEnd = 40u << kDepthFraction;
inline constexpr int64_t kMaxVocab = int64_t{1} << 18;

// What a request asks for; the proto's meanings.
struct SamplingOptions {
  float temperature = 1;  // 0: greedy, 0..100
  int32_t top_k = 0;      // 0: all
  float top_p = 1;        // above 0, up to 1
  float min_p = 0;        // 0 up to 1
  uint64_t seed = 0;
};

// The same as the kernel reads it, one a row.
struct SamplingRow {
  uint64_t seed = 0;
  uint64_t top_p = uint64_t{1} << 32;  // in 2^-32
  float bits_per_logit = 0;            // log2(e) / temperature; 0: greedy
  uint32_t min_p_depth = kDepthEnd;    // largest depth that min-p keeps
  int32_t top_k = 0;
  int32_t unused = 0;
};
static_assert(sizeof(SamplingRow) == 32);

// INVALID_ARGUMENT "<field>: found <found>, expected <range>".
absl::StatusOr<SamplingRow> MakeSamplingRow(const SamplingOptions& options);

// 53 random bits, decided by the request's seed and the position of the token to be drawn alone.
NIBBLE_HOST_DEVICE inline uint64_t UniformBits(uint64_t seed, int64_t position) {
  const auto mix = [](uint64_t x) {  // splitmix64's finalizer
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  };
  return mix(mix(seed + 0x9e3779b97f4a7c15u) + static_cast<uint64_t>(position)) >> 11;
}

// A token's depth, at least kDepthEnd for weight 0 (minus infinity too).
NIBBLE_HOST_DEVICE inline uint32_t DepthOf(float logit, float largest, float bits_per_logit) {
  // In 64..128 a float's last bit is worth 2^-17; what lies above has larger bits still.
  const float shifted = fmaf(largest - logit, bits_per_logit, 64.f);
  return std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(64.f);
}

// 2^40 * 2^-depth to within 6e-7 of itself and 1; 0 from kDepthEnd on. Exactly 2^40 at 0.
NIBBLE_HOST_DEVICE inline uint64_t WeightOf(uint32_t depth) {
  if (depth >= kDepthEnd) return 0;
  const uint32_t fraction = (depth & ((1u << kDepthFraction) - 1)) << (23 - kDepthFraction);
  const float f = std::bit_cast<float>(std::bit_cast<uint32_t>(1.f) | fraction) - 1.f;
  // 2^-f on [0, 1], interpolated at Chebyshev nodes.
  float p = -0.001003630514033104f;
  p = fmaf(p, f, 0.009344231011760911f);
  p = fmaf(p, f, -0.055408559538212415f);
  p = fmaf(p, f, 0.2402146899803618f);
  p = fmaf(p, f, -0.6931469447018759f);
  p = fmaf(p, f, 1.f);
  // 1 + p in [1.5, 2] carries p in units of 2^-23.
  const uint64_t units = std::bit_cast<uint32_t>(p + 1.f) - std::bit_cast<uint32_t>(1.f);
  return (units << (40 - 23)) >> (depth >> kDepthFraction);
}

// floor(a * b / 2^shift).
NIBBLE_HOST_DEVICE inline uint64_t MultiplyShift(uint64_t a, uint64_t b, int shift) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>((static_cast<Wide>(a) * b) >> shift);
}

}  // namespace nibble
