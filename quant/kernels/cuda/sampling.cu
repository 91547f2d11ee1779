#include "quant/base/status_macros.h"
#include "quant/kernels/cuda/overlap.cuh"
#include "quant/kernels/cuda/sampling.h"

namespace nibble {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
// A token's rank key: depth, then id. Keys of a row are distinct and rise with the rank.
constexpr int kIdBits = 18;
static_assert(kMaxVocab == int64_t{1} << kIdBits);
// A histogram has a bucket a thread. The first level's buckets are 1/16 bit of depth wide.
constexpr int kBucketBits = 10;
static_assert(kThreads == 1 << kBucketBits);
constexpr int kFirstShift = kIdBits + kDepthFraction - 4;
static_assert((uint64_t{kDepthEnd} << kIdBits >> kFirstShift) <= kThreads);

// Tokens and their weight.
struct Mass {
  uint32_t count;
  uint64_t weight;
  __device__ Mass& operator+=(const Mass& other) {
    count += other.count;
    weight += other.weight;
    return *this;
  }
};

// A place in the ranking: after `place` tokens, or after `place` of weight.
struct Place {
  uint64_t place;
  bool by_count;
  __device__ uint64_t Of(const Mass& mass) const { return by_count ? mass.count : mass.weight; }
  // True if it falls into what follows `before`.
  __device__ bool IsIn(const Mass& before, const Mass& here) const {
    return Of(before) <= place && place - Of(before) < Of(here);
  }
};

struct Buckets {
  uint32_t count[kThreads];
  unsigned long long weight[kThreads];
};

struct Shared {
  Mass warps[kWarps];
  float warp_max[kWarps];
  Buckets first;            // the whole row
  Buckets refined;          // one bucket of the level above
  uint64_t keys[kThreads];  // of one bucket's tokens, in no order
  uint32_t key_count;
  // What a search found: a bucket and what lies before it, or a token and what ends with it.
  int bucket;
  Mass found;
  int32_t token;
};

__device__ float Widen(float x) { return x; }
__device__ float Widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// One block's view of its row.
template <class T>
struct Row {
  const T* logits;
  int vocab;
  float largest;
  float bits_per_logit;

  // Calls function(id, logit) for this thread's tokens.
  template <class Function>
  __device__ void ForEach(Function&& function) const {
    constexpr int kPerLoad = sizeof(uint4) / sizeof(T);
    const auto* loads = reinterpret_cast<const uint4*>(logits);
    for (int i = threadIdx.x; i * kPerLoad < vocab; i += kThreads) {
      const uint4 raw = loads[i];
      const T* values = reinterpret_cast<const T*>(&raw);
#pragma unroll
      for (int e = 0; e < kPerLoad; ++e) {
        const int id = i * kPerLoad + e;
        if (id < vocab) function(id, Widen(values[e]));
      }
    }
  }

  // Calls function(key, depth) for those of a weight.
  template <class Function>
  __device__ void ForEachKey(Function&& function) const {
    ForEach([&](int id, float logit) {
      const uint32_t depth = DepthOf(logit, largest, bits_per_logit);
      if (depth < kDepthEnd) function((uint64_t{depth} << kIdBits) | static_cast<uint32_t>(id));
    });
  }
};

__device__ uint32_t DepthOfKey(uint64_t key) { return static_cast<uint32_t>(key >> kIdBits); }

// The largest of all threads' values; NaN if one of them is.
__device__ float BlockMax(Shared& shared, float mine, bool has_nan) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, step));
  }
  if (threadIdx.x % 32 == 0) shared.warp_max[threadIdx.x / 32] = mine;
  if (__syncthreads_or(has_nan)) return NAN;
  float largest = shared.warp_max[0];
  for (int warp = 1; warp < kWarps; ++warp) largest = fmaxf(largest, shared.warp_max[warp]);
  return largest;
}

// What the threads before this one hold, in thread order.
__device__ Mass MassBefore(Shared& shared, const Mass& mine) {
  const int lane = threadIdx.x % 32;
  Mass through = mine;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const Mass lower = {__shfl_up_sync(0xffffffffu, through.count, step),
                        __shfl_up_sync(0xffffffffu, through.weight, step)};
    if (lane >= step) through += lower;
  }
  __syncthreads();
  if (lane == 31) shared.warps[threadIdx.x / 32] = through;
  __syncthreads();
  Mass before = {through.count - mine.count, through.weight - mine.weight};
  for (int warp = 0; warp < threadIdx.x / 32; ++warp) before += shared.warps[warp];
  return before;
}

// Of all threads; every thread gets it.
__device__ Mass Total(Shared& shared, const Mass& mine) {
  MassBefore(shared, mine);
  Mass all{};
  for (int warp = 0; warp < kWarps; ++warp) all += shared.warps[warp];
  return all;
}

// Fills `buckets` with the tokens whose key lies in base .. base + (kThreads << shift) - 1. A
// thread adds up neighbours of one bucket first, which equal logits are.
template <class T>
__device__ void FillBuckets(const Row<T>& row, uint64_t base, int shift, Buckets& buckets) {
  __syncthreads();
  buckets.count[threadIdx.x] = 0;
  buckets.weight[threadIdx.x] = 0;
  __syncthreads();
  uint32_t open = 0;
  Mass sum{};
  const auto close = [&] {
    if (sum.count == 0) return;
    atomicAdd(&buckets.count[open], sum.count);
    atomicAdd(&buckets.weight[open], static_cast<unsigned long long>(sum.weight));
    sum = {};
  };
  row.ForEachKey([&](uint64_t key) {
    if (key < base) return;
    const uint64_t bucket = (key - base) >> shift;
    if (bucket >= kThreads) return;
    if (bucket != open) close();
    open = static_cast<uint32_t>(bucket);
    sum += {1, WeightOf(DepthOfKey(key))};
  });
  close();
  __syncthreads();
}

// Sets shared.bucket to the one into which `place` falls and shared.found to what lies before it,
// `before` included; `before` lies before the first bucket.
__device__ void FindBucket(Shared& shared, const Buckets& buckets, const Place& place,
                           const Mass& before) {
  const Mass here = {buckets.count[threadIdx.x], buckets.weight[threadIdx.x]};
  Mass left = MassBefore(shared, here);
  left += before;
  if (place.IsIn(left, here)) {
    shared.bucket = static_cast<int>(threadIdx.x);
    shared.found = left;
  }
  __syncthreads();
}

// Among the tokens of keys base .. base + 2^shift - 1, at most kThreads, with `before` before them:
// sets shared.token to that into which `place` falls and shared.found to what ends with it.
template <class T>
__device__ void FindToken(Shared& shared, const Row<T>& row, uint64_t base, int shift,
                          const Place& place, const Mass& before) {
  if (threadIdx.x == 0) shared.key_count = 0;
  __syncthreads();
  row.ForEachKey([&](uint64_t key) {
    if (key >= base && (key - base) >> shift == 0) {
      shared.keys[atomicAdd(&shared.key_count, 1u)] = key;
    }
  });
  __syncthreads();
  const uint32_t count = shared.key_count;
  if (threadIdx.x < count) {
    const uint64_t mine = shared.keys[threadIdx.x];
    Mass left = before;
    for (uint32_t i = 0; i < count; ++i) {
      if (shared.keys[i] < mine) left += {1, WeightOf(DepthOfKey(shared.keys[i]))};
    }
    const Mass here = {1, WeightOf(DepthOfKey(mine))};
    if (place.IsIn(left, here)) {
      shared.token = static_cast<int32_t>(mine & (kMaxVocab - 1));
      shared.found = left;
      shared.found += here;
    }
  }
  __syncthreads();
}

// The token into which `place` falls in shared.token, what ends with it in shared.found. The row's
// first-level buckets are filled and `place` lies within the row.
template <class T>
__device__ void Find(Shared& shared, const Row<T>& row, const Place& place) {
  uint64_t base = 0;
  int shift = kFirstShift;
  const Buckets* buckets = &shared.first;
  Mass before{};
  while (true) {
    FindBucket(shared, *buckets, place, before);
    const int bucket = shared.bucket;
    before = shared.found;
    base += static_cast<uint64_t>(bucket) << shift;
    if (buckets->count[bucket] <= kThreads) break;
    shift -= kBucketBits;  // more tokens than threads: keys are distinct, so shift > kBucketBits
    FillBuckets(row, base, shift, shared.refined);
    buckets = &shared.refined;
  }
  FindToken(shared, row, base, shift, place, before);
}

// The weight of the head of the ranking that top-k, min-p and top-p all keep.
template <class T>
__device__ uint64_t KeptWeight(Shared& shared, const Row<T>& row, const SamplingRow& sampling) {
  const Mass all =
      Total(shared, {shared.first.count[threadIdx.x], shared.first.weight[threadIdx.x]});
  uint64_t top_k = all.weight;
  if (sampling.top_k > 0 && static_cast<uint32_t>(sampling.top_k) < all.count) {
    Find(shared, row, {static_cast<uint64_t>(sampling.top_k) - 1, true});
    top_k = shared.found.weight;
  }
  uint64_t kept = top_k;
  if (sampling.min_p_depth < kDepthEnd) {
    Mass mine{};
    row.ForEachKey([&](uint64_t key) {
      const uint32_t depth = DepthOfKey(key);
      if (depth <= sampling.min_p_depth) mine += {1, WeightOf(depth)};
    });
    kept = min(kept, Total(shared, mine).weight);
  }
  if (sampling.top_p < uint64_t{1} << 32) {
    // The token with which the sum first reaches top_p of the weight holds the unit before that.
    Find(shared, row, {MultiplyShift(top_k - 1, sampling.top_p, 32), false});
    kept = min(kept, shared.found.weight);
  }
  return kept;
}

// One block a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    SampleKernel(LogitRows<T> logits, const SamplingRow* rows, const int32_t* positions,
                 int32_t* tokens) {
  LetNextKernelStart();
  WaitForEarlierKernels();
  __shared__ Shared shared;
  Row<T> row = {logits.logits + blockIdx.x * logits.stride, static_cast<int>(logits.vocab)};
  float mine = -INFINITY;
  bool has_nan = false;
  row.ForEach([&](int, float logit) {
    mine = fmaxf(mine, logit);
    has_nan |= isnan(logit);
  });
  row.largest = BlockMax(shared, mine, has_nan);
  const SamplingRow sampling = rows[blockIdx.x];
  row.bits_per_logit = sampling.bits_per_logit;
  if (!isfinite(row.largest)) {
    if (threadIdx.x == 0) shared.token = -1;
  } else if (sampling.bits_per_logit == 0) {
    if (threadIdx.x == 0) shared.token = INT32_MAX;
    __syncthreads();
    row.ForEach([&](int id, float logit) {
      if (logit == row.largest) atomicMin(&shared.token, id);
    });
  } else {
    FillBuckets(row, 0, kFirstShift, shared.first);
    const uint64_t kept = KeptWeight(shared, row, sampling);
    const uint64_t bits = UniformBits(sampling.seed, positions[blockIdx.x]);
    Find(shared, row, {MultiplyShift(kept, bits, 53), false});
  }
  __syncthreads();
  if (threadIdx.x == 0) tokens[blockIdx.x] = shared.token;
}

template <class T>
absl::Status Launch(const LogitRows<T>& logits, const SamplingRow* rows, const int32_t* positions,
                    int32_t* tokens, cudaStream_t stream) {
  if (logits.rows < 0 || logits.rows > INT32_MAX || logits.vocab <= 0 || logits.vocab > kMaxVocab ||
      logits.stride < logits.vocab || logits.stride % 8 != 0) {
    return absl::InvalidArgumentError(StrCat(
        "logits: found ", logits.rows, " rows of ", logits.vocab, " at a stride of ", logits.stride,
        ", expected 1..", kMaxVocab, " and a stride that is a multiple of 8"));
  }
  NIBBLE_RETURN_IF_ERROR(CheckPointer("logits", logits.logits, 16));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("sampling rows", rows, 8));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("positions", positions, 4));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("tokens", tokens, 4));
  if (logits.rows == 0) return absl::OkStatus();
  return LaunchOverlapped("SampleTokens", SampleKernel<T>, static_cast<unsigned>(logits.rows),
                          kThreads, 0, stream, logits, rows, positions, tokens);
}

}  // namespace

absl::Status SampleTokens(const LogitRows<__nv_bfloat16>& logits, const SamplingRow* rows,
                          const int32_t* positions, int32_t* tokens, cudaStream_t stream) {
  return Launch(logits, rows, positions, tokens, stream);
}

absl::Status SampleTokens(const LogitRows<float>& logits, const SamplingRow* rows,
                          const int32_t* positions, int32_t* tokens, cudaStream_t stream) {
  return Launch(logits, rows, positions, tokens, stream);
}

}  // namespace nibble
