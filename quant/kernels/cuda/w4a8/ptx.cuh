// One wrapper per PTX instruction of the W4A8 kernels that CUDA C++ has no name for (wgmma has a
// file of its own). Shared-memory operands are 32-bit addresses; an address is of the own block's
// window unless the wrapper says `Cluster`.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::w4a8 {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// `value`, computed here and kept: the compiler would compute addresses again in every loop.
__device__ __forceinline__ uint32_t Opaque(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// a / power, for what the compiler does not know to be a power of two.
__device__ __forceinline__ int DivideByPower(int a, int power) { return a >> (__ffs(power) - 1); }

// --- mbarrier: a phase ends when `count` arrivals and all announced bytes have come.

__device__ __forceinline__ void BarrierInit(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Makes initialized barriers visible to the copy engine and to the other blocks of the cluster;
// threads still need a block or cluster barrier.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the barrier at the same place in block `rank` of the cluster, by who has only read:
// what it wrote before need not be seen after. (A release by the cluster costs a fence of all
// memory.)
__device__ __forceinline__ void BarrierArriveClusterAsReader(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Arrives and announces `bytes` that the copy engine, or other blocks' stores, will bring or have
// brought.
__device__ __forceinline__ void BarrierArriveExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Until the phase of this parity has ended. A fresh barrier's phase "before the first" has parity 1
// and counts as ended.
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra wait;}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// The same, and sees what other blocks of the cluster wrote before they arrived.
__device__ __forceinline__ void BarrierWaitCluster(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra wait;}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Named barrier `id` (1..15; 0 is __syncthreads) of `threads` threads.
__device__ __forceinline__ void NamedBarrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- Bulk copies from global to shared memory, done by the copy engine; `barrier` counts the
// bytes.

// Cache hint for data that is read once: weights leave the second-level cache first.
__device__ __forceinline__ uint64_t EvictFirst() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// `bytes` contiguous bytes; addresses and size are multiples of 16.
__device__ __forceinline__ void BulkLoad(uint32_t to, const void* from, uint32_t bytes,
                                         uint32_t barrier, uint64_t cache_policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(cache_policy)
      : "memory");
}

// The same without a hint: for data that other blocks read too.
__device__ __forceinline__ void BulkLoad(uint32_t to, const void* from, uint32_t bytes,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// The box of `map` whose first element is (x, y), x the fastest dimension; elements outside of the
// tensor are zeros.
__device__ __forceinline__ void TensorLoad(uint32_t to, const CUtensorMap* map, int x, int y,
                                           uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// The same into, and counted by, the same places of every block whose bit is set in `blocks`.
__device__ __forceinline__ void TensorLoadMulticast(uint32_t to, const CUtensorMap* map, int x,
                                                    int y, uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
      : "memory");
}

// Fetches a tensor map before its first use.
__device__ __forceinline__ void PrefetchTensorMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Orders this thread's ordinary accesses to shared memory before later ones by the copy engine or
// the tensor cores.
__device__ __forceinline__ void FenceAsyncShared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Orders this thread's ordinary accesses to global memory and those of the copy engine: between
// ordinary stores and the release that announces them, and between its acquire and the copies.
__device__ __forceinline__ void FenceAsyncGlobal() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// --- Shared memory by address.

__device__ __forceinline__ uint4 SharedLoad16(uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}

__device__ __forceinline__ float4 AsFloats(uint4 v) {
  return {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
}

__device__ __forceinline__ uint2 SharedLoad8(uint32_t at) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}

__device__ __forceinline__ uint32_t SharedLoad4(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}

__device__ __forceinline__ uint32_t SharedLoad2(uint32_t at) {
  uint32_t v;
  asm volatile("{.reg .u16 h; ld.shared.u16 h, [%1]; cvt.u32.u16 %0, h;}"
               : "=r"(v)
               : "r"(at)
               : "memory");
  return v;
}

__device__ __forceinline__ uint32_t SharedLoad1(uint32_t at) {
  uint32_t v;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}

__device__ __forceinline__ void SharedStore4(uint32_t at, float v) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
}

__device__ __forceinline__ void SharedStore8(uint32_t at, uint2 v) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(at), "r"(v.x), "r"(v.y) : "memory");
}

__device__ __forceinline__ void SharedStore16(uint32_t at, float4 v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(v.x), "f"(v.y), "f"(v.z),
               "f"(v.w)
               : "memory");
}

// Four 8 x 8 matrices of 16 bits, each turned: register i of lane l holds row l / 4, columns
// 2 (l % 4), + 1 of matrix i; lane 8 i + c gives the address of the 16 bytes of its column c.
__device__ __forceinline__ void SharedStoreTransposed(uint32_t at, const uint4& matrices) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
               "r"(matrices.x), "r"(matrices.y), "r"(matrices.z), "r"(matrices.w)
               : "memory");
}

// Two such matrices; lanes 16 to 31 give addresses that are not used.
__device__ __forceinline__ void SharedStoreTransposed(uint32_t at, uint32_t first,
                                                      uint32_t second) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(at),
               "r"(first), "r"(second)
               : "memory");
}

__device__ __forceinline__ void SharedStore16(uint32_t at, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// --- Clusters.

// This block's rank in its cluster.
__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// The cluster address of this block's shared `at` in block `rank`.
__device__ __forceinline__ uint32_t ClusterAddress(uint32_t at, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(at), "r"(rank));
  return address;
}

// Stores to another block, whose barrier (of the same block) counts the bytes when they have come.
__device__ __forceinline__ void ClusterStore16(uint32_t cluster_address, const float4& v,
                                               uint32_t cluster_barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(cluster_address),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(cluster_barrier)
      : "memory");
}

// The two halves of the barrier over every thread of the cluster; memory written before the one is
// seen after the other.
__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
// The same where what was written need not be seen, or is released otherwise (FenceBarrierInit).
__device__ __forceinline__ void ClusterArriveRelaxed() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ __forceinline__ void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// --- Grids.

// Until the grids before this one in the stream have ended and their memory is seen. Returns at
// once unless the launch allows programmatic serialization.
__device__ __forceinline__ void WaitForEarlierGrids() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the next grid of the stream be started as soon as every block of this one came here or
// ended.
__device__ __forceinline__ void LetNextGridStart() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// --- Flags in global memory between blocks of one grid.

// Sees all that was written before the ReleaseAdd calls whose sum it reads.
__device__ __forceinline__ uint32_t AcquireLoad(const uint32_t* flag) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  return v;
}
__device__ __forceinline__ void ReleaseAdd(uint32_t* flag, uint32_t v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(flag), "r"(v) : "memory");
}

// --- Registers.

// Changes the registers of every thread of this warpgroup; needs __launch_bounds__(threads, 1).
template <int kRegisters>
__device__ __forceinline__ void ReleaseRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void AcquireRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// --- Tensor cores, one warp.

// D[16][8] += A[16][16] * B[8][16]^T, bf16 with f32 sums. Lane l, g = l / 4, c = l % 4:
//   a  rows g, g + 8, g, g + 8; columns 2c, 2c + 1, from the third register on + 8
//   b  row g; columns 2c, 2c + 1, in the second register + 8
//   d  row g: columns 2c, 2c + 1; row g + 8: the same
__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// D[16][8] += A[16][32] * B[8][32]^T, E4M3 with f32 sums; Hopper runs it as half precision, slowly.
// Lane l, g = l / 4, c = l % 4:
//   a  rows g, g + 8, g, g + 8; columns 4c..4c + 3, from the third register on + 16
//   b  row g; columns 4c..4c + 3, in the second register + 16
//   d  as MmaBf16
__device__ __forceinline__ void MmaE4M3(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

}  // namespace nibble::w4a8
