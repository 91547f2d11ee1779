#include <cuda_fp8.h>

#include <cmath>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/variants.cuh>

#include "quant/base/status_macros.h"
#include "quant/kernels/cuda/attention.h"
#include "quant/kernels/cuda/attention_merge.h"
#include "quant/kernels/cuda/decode_attention.h"
#include "quant/kernels/cuda/overlap.cuh"

namespace nibble {
namespace {

// Stands where FlashInfer has one number for the batch: the keys in a chunk of this block's work.
struct ChunkKeys {
  const int32_t* of_work = nullptr;
  __device__ uint32_t operator*() const { return of_work[blockIdx.x]; }
};

// FlashInfer's parameters with our lengths, chunks and scale of the values.
template <class Kv>
struct Parameters : flashinfer::BatchPrefillPagedParams<__nv_bfloat16, Kv, float, int32_t> {
  const int32_t* lengths = nullptr;
  ChunkKeys kv_chunk_size_ptr;
  float v_scale = 1;
  __device__ uint32_t get_kv_len(uint32_t sequence) const { return lengths[sequence]; }
};

// Four warps of 32 rows, 64 keys at a time.
constexpr int kTileRows = 128;
constexpr int kTileSteps = 4;

template <class Kv, int kDim>
using Traits = flashinfer::KernelTraits<
    flashinfer::MaskMode::kCausal, kTileRows, flashinfer::get_num_mma_q(kTileRows), kTileSteps,
    kDim / 16, kDim / 16, flashinfer::get_num_warps_q(kTileRows),
    flashinfer::get_num_warps_kv(kTileRows), flashinfer::PosEncodingMode::kNone, __nv_bfloat16, Kv,
    float, float, int32_t,
    flashinfer::DefaultAttention</*custom mask=*/false, /*window=*/false, /*soft cap=*/false,
                                 /*alibi=*/false>,
    flashinfer::kPrefillLauncherRepacksFp4>;

template <class Kv>
Parameters<Kv> MakeParameters(const AttentionCall& call, const PartialResults& partials) {
  const AttentionLimits& limits = call.plan.limits;
  const AttentionImage at(limits);
  // FlashInfer's pointers are to mutable data; it writes none of these.
  int32_t* image = const_cast<int32_t*>(call.image);
  const int dim = StoredHeadDim(call.kv.head_dim);
  const int heads = limits.group * limits.kv_heads;
  Parameters<Kv> p;
  p.q = const_cast<__nv_bfloat16*>(call.q);
  p.paged_kv = flashinfer::paged_kv_t<Kv, int32_t>(
      limits.kv_heads, limits.page_size, dim, limits.sequences, flashinfer::QKVLayout::kNHD,
      static_cast<Kv*>(call.kv.k), static_cast<Kv*>(call.kv.v), image + at.pages,
      image + at.page_begin, /*last_page_len=*/nullptr);
  p.q_indptr = image + at.query_begin;
  p.o = partials.values;
  p.lse = partials.log_sums;
  p.group_size = flashinfer::uint_fastdiv(limits.group);
  p.num_qo_heads = heads;
  p.q_stride_n = heads * dim;
  p.q_stride_h = dim;
  p.window_left = -1;
  p.sm_scale = call.kv.k_scale / std::sqrt(static_cast<float>(call.kv.head_dim));
  p.request_indices = image + at.work_sequence;
  p.qo_tile_indices = image + at.work_tile;
  p.kv_tile_indices = image + at.work_chunk;
  p.o_indptr = image + at.sequence_partial;
  p.block_valid_mask = reinterpret_cast<bool*>(image + at.work_valid);
  p.partition_kv = true;
  p.lengths = image + at.lengths;
  p.kv_chunk_size_ptr = {image + at.work_keys};
  p.v_scale = call.kv.v_scale;
  return p;
}

template <class Kv, int kDim>
absl::Status LaunchTiles(const AttentionCall& call, const PartialResults& partials,
                         cudaStream_t stream) {
  using KernelTraits = Traits<Kv, kDim>;
  static_assert(!KernelTraits::IsInvalid());
  const auto kernel = flashinfer::BatchPrefillWithPagedKVCacheKernel</*SAME_KV_STRIDES=*/true,
                                                                     KernelTraits, Parameters<Kv>>;
  constexpr int kShared = sizeof(typename KernelTraits::SharedStoragePaged);
  NIBBLE_RETURN_IF_ERROR(
      CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
                "attention's shared memory"));
  const dim3 grid(call.plan.work, 1, call.plan.limits.kv_heads);
  const dim3 block(32, KernelTraits::NUM_WARPS_Q, KernelTraits::NUM_WARPS_KV);
  return LaunchOverlapped("Attention", kernel, grid, block, kShared, stream,
                          MakeParameters<Kv>(call, partials));
}

template <class Kv>
absl::Status LaunchForDim(const AttentionCall& call, const PartialResults& partials,
                          cudaStream_t stream) {
  return StoredHeadDim(call.kv.head_dim) == 64 ? LaunchTiles<Kv, 64>(call, partials, stream)
                                               : LaunchTiles<Kv, 128>(call, partials, stream);
}

absl::Status Check(const AttentionCall& call) {
  NIBBLE_RETURN_IF_ERROR(CheckPagedKv(call.kv));
  const AttentionLimits& limits = call.plan.limits;
  if (limits.kv_heads != call.kv.kv_heads || limits.page_size != call.kv.page_size) {
    return absl::InvalidArgumentError(StrCat(
        "attention: found a cache of ", call.kv.kv_heads, " heads and pages of ", call.kv.page_size,
        " tokens, expected the plan's ", limits.kv_heads, " and ", limits.page_size));
  }
  NIBBLE_RETURN_IF_ERROR(CheckPointer("attention image", call.image, 16));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("q", call.q, 16));
  return CheckPointer("attention workspace", call.workspace, 16);
}

// Queues the partial results; nothing where there is no work.
absl::Status AttendPartially(const AttentionCall& call, const PartialResults& partials,
                             cudaStream_t stream) {
  if (call.plan.work == 0) return absl::OkStatus();
  if (call.plan.limits.regime == AttentionRegime::kDecode) {
    return AttendDecode(call, partials, stream);
  }
  return call.kv.format == KvFormat::kBf16 ? LaunchForDim<__nv_bfloat16>(call, partials, stream)
                                           : LaunchForDim<__nv_fp8_e4m3>(call, partials, stream);
}

PartialResults PartialsOf(const AttentionCall& call) {
  const AttentionLimits& limits = call.plan.limits;
  auto* values = static_cast<float*>(call.workspace);
  const int64_t heads = int64_t{limits.group} * limits.kv_heads;
  const int dim = StoredHeadDim(call.kv.head_dim);
  return {values,
          values + limits.partials * heads * dim,
          call.image + AttentionImage(limits).partial_begin,
          static_cast<int>(heads),
          call.kv.head_dim,
          dim};
}

}  // namespace

int64_t AttentionWorkspaceBytes(const AttentionLimits& limits, int head_dim) {
  return int64_t{limits.partials} * limits.group * limits.kv_heads * (StoredHeadDim(head_dim) + 1) *
         static_cast<int64_t>(sizeof(float));
}

absl::Status Attend(const AttentionCall& call, __nv_bfloat16* out, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Check(call));
  const PartialResults partials = PartialsOf(call);
  NIBBLE_RETURN_IF_ERROR(AttendPartially(call, partials, stream));
  return MergePartials(partials, call.plan.tokens, out, stream);
}

absl::Status AttendQuantize(const AttentionCall& call, uint8_t* codes, float* scales,
                            cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Check(call));
  const PartialResults partials = PartialsOf(call);
  NIBBLE_RETURN_IF_ERROR(AttendPartially(call, partials, stream));
  return MergePartialsQuantize(partials, call.plan.tokens, codes, scales, stream);
}

}  // namespace nibble
