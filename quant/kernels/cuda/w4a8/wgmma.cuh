// Hopper's asynchronous FP8 matrix product with A in registers.
//
// wgmma.mma_async.m64nNk32: D[64][N] += A[64][32] * B[N][32]^T for one warpgroup; A and B E4M3,
// D f32. Thread t of the warpgroup (warp w = t / 32, g = t % 32 / 4, c = t % 4) holds
//   A  a[0], a[1]: rows 16w + g and + 8, k = 4c..4c+3;  a[2], a[3]: the same rows, k + 16
//   D  d[4j], d[4j+1]: row 16w + g, columns 8j + 2c, + 1;  d[4j+2], d[4j+3]: row + 8
// B lies in shared memory, K-major; `b` is its descriptor.
#pragma once

#include <cstdint>

namespace nibble::w4a8 {

// NIBBLE_Dn: n f32 operands from d; NIBBLE_Rn: their names %0..%(n-1).
#define NIBBLE_D_8(i)                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define NIBBLE_D4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define NIBBLE_D_16(i) NIBBLE_D_8(i), NIBBLE_D_8(i + 8)
#define NIBBLE_D8 NIBBLE_D_8(0)
#define NIBBLE_D16 NIBBLE_D_16(0)
#define NIBBLE_D32 NIBBLE_D_16(0), NIBBLE_D_16(16)
#define NIBBLE_D48 NIBBLE_D32, NIBBLE_D_16(32)
#define NIBBLE_D64 NIBBLE_D48, NIBBLE_D_16(48)
#define NIBBLE_D80 NIBBLE_D64, NIBBLE_D_16(64)
#define NIBBLE_D96 NIBBLE_D80, NIBBLE_D_16(80)
#define NIBBLE_D128 NIBBLE_D96, NIBBLE_D_16(96), NIBBLE_D_16(112)
#define NIBBLE_R4 "%0,%1,%2,%3"
#define NIBBLE_R8 NIBBLE_R4 ",%4,%5,%6,%7"
#define NIBBLE_R16 NIBBLE_R8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define NIBBLE_R32                                                                 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21," \
  "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NIBBLE_R48 NIBBLE_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define NIBBLE_R64 NIBBLE_R48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define NIBBLE_R80 NIBBLE_R64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define NIBBLE_R96 NIBBLE_R80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define NIBBLE_R128                                                                              \
  NIBBLE_R96                                                                                     \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114," \
  "%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// Defines Wgmma for `columns` columns: `half` f32 registers of D, then six operands whose names are
// a0..a3 (A), b and keep.
#define NIBBLE_DEFINE_WGMMA(columns, half, a0, a1, a2, a3, b, keep)                               \
  __device__ __forceinline__ void Wgmma(float(&d)[half], const uint32_t* a, uint64_t descriptor,  \
                                        uint32_t accumulate) {                                    \
    asm volatile("{.reg .pred keep; setp.ne.b32 keep, %" #keep                                    \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns                               \
                 "k32.f32.e4m3.e4m3 {" NIBBLE_R##half "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3      \
                                                      "}, %" #b ", keep, 1, 1;}"                  \
                 : NIBBLE_D##half                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(accumulate)); \
  }

// Orders register and shared-memory accesses before the products that follow.
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Closes a group of the products queued since the last.
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kPending groups are still under way.
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// The descriptor of B [N][128] bytes in shared memory, rows of 128 bytes under the 128-byte swizzle
// (as a tensor map with CU_TENSOR_MAP_SWIZZLE_128B writes them); `at` is a multiple of 1024. The
// k-step that begins at byte 32 * s of the rows has descriptor + 2 * s.
__device__ __forceinline__ uint64_t SwizzledDescriptor(uint32_t at) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kRowsOf8 = uint64_t{1024 >> 4} << 32;  // stride of 8 rows, 16-byte units
  constexpr uint64_t kLeading = uint64_t{1} << 16;          // not read under this swizzle
  return kSwizzle128 | kRowsOf8 | kLeading | (at >> 4);
}

// d = a * B + (accumulate ? d : 0), queued; d and a must not be touched before the wait.
NIBBLE_DEFINE_WGMMA(8, 4, 4, 5, 6, 7, 8, 9)
NIBBLE_DEFINE_WGMMA(16, 8, 8, 9, 10, 11, 12, 13)
NIBBLE_DEFINE_WGMMA(32, 16, 16, 17, 18, 19, 20, 21)
NIBBLE_DEFINE_WGMMA(64, 32, 32, 33, 34, 35, 36, 37)
NIBBLE_DEFINE_WGMMA(96, 48, 48, 49, 50, 51, 52, 53)
NIBBLE_DEFINE_WGMMA(128, 64, 64, 65, 66, 67, 68, 69)
NIBBLE_DEFINE_WGMMA(160, 80, 80, 81, 82, 83, 84, 85)
NIBBLE_DEFINE_WGMMA(192, 96, 96, 97, 98, 99, 100, 101)
NIBBLE_DEFINE_WGMMA(256, 128, 128, 129, 130, 131, 132, 133)

}  // namespace nibble::w4a8
