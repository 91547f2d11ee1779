#include "quant/kernels/cuda/w4a8/decode_arguments.h"
#include "quant/kernels/cuda/w4a8/decode_kernel.cuh"

namespace nibble::w4a8 {
namespace {

constexpr int kThreads = 128 * kMaxWarpgroups + 32;

// Few tokens: registers for two of the largest blocks a multiprocessor. Many: for one.
template <int kGroups, int kTokens>
__global__ void __launch_bounds__(kTokens <= 16 ? kThreads : kThreads + 32, kTokens <= 16 ? 2 : 1)
    FoldedDecode(const __grid_constant__ DecodeArguments args) {
  Decode<Kind::kFolded, kGroups, kTokens>(args);
}

template <int kGroups>
DecodeKernelPointer OfTokens(int token_tile) {
  switch (token_tile) {
    case 8:
      return FoldedDecode<kGroups, 8>;
    case 16:
      return FoldedDecode<kGroups, 16>;
    case 32:
      return FoldedDecode<kGroups, 32>;
    case 64:
      return FoldedDecode<kGroups, 64>;
    default:
      return nullptr;
  }
}

}  // namespace

DecodeKernelPointer FoldedDecodeKernel(int groups, int token_tile) {
  switch (groups) {
    case 1:
      return OfTokens<1>(token_tile);
    case 2:
      return OfTokens<2>(token_tile);
    case 4:
      return OfTokens<4>(token_tile);
    case 8:
      return OfTokens<8>(token_tile);
    default:
      return nullptr;
  }
}

}  // namespace nibble::w4a8
