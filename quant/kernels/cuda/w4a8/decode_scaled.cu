#include "quant/kernels/cuda/w4a8/decode_arguments.h"
#include "quant/kernels/cuda/w4a8/decode_kernel.cuh"

namespace nibble::w4a8 {
namespace {

template <Kind kKind, int kGroups, int kTokens>
__global__ void __launch_bounds__(128 * kMaxWarpgroups + 64, 1)
    ScaledDecode(const __grid_constant__ DecodeArguments args) {
  Decode<kKind, kGroups, kTokens>(args);
}

template <Kind kKind, int kGroups>
DecodeKernelPointer OfTokens(int token_tile) {
  switch (token_tile) {
    case 16:
      return ScaledDecode<kKind, kGroups, 16>;
    case 64:
      return ScaledDecode<kKind, kGroups, 64>;
    default:
      return nullptr;
  }
}

template <Kind kKind>
DecodeKernelPointer OfGroups(int groups, int token_tile) {
  switch (groups) {
    case 1:
      return OfTokens<kKind, 1>(token_tile);
    case 2:
      return OfTokens<kKind, 2>(token_tile);
    case 4:
      return OfTokens<kKind, 4>(token_tile);
    case 8:
      return OfTokens<kKind, 8>(token_tile);
    default:
      return nullptr;
  }
}

}  // namespace

DecodeKernelPointer ScaledDecodeKernel(Kind kind, int groups, int token_tile) {
  return kind == Kind::kScaled4 ? OfGroups<Kind::kScaled4>(groups, token_tile)
                                : OfGroups<Kind::kScaled8>(groups, token_tile);
}

}  // namespace nibble::w4a8
