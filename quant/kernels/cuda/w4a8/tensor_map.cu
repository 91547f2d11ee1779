#include <cuda_runtime_api.h>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/kernels/cuda/launch.h"
#include "quant/kernels/cuda/w4a8/layout.h"
#include "quant/kernels/cuda/w4a8/tensor_map.h"

namespace nibble::w4a8 {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found at run time: nothing links to libcuda, which machines without a
// driver lack.
absl::StatusOr<Encode> FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  constexpr unsigned kSince = 12000;
  NIBBLE_RETURN_IF_ERROR(
      CheckCuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSince,
                                                 cudaEnableDefault, &found),
                "cudaGetDriverEntryPointByVersion(cuTensorMapEncodeTiled)"));
  if (found == cudaDriverEntryPointSuccess) return reinterpret_cast<Encode>(function);
  return absl::UnimplementedError(
      "CUDA driver: found none with cuTensorMapEncodeTiled, expected version 12.0 or later");
}

}  // namespace

absl::StatusOr<CUtensorMap> MakeActivationMap(const uint8_t* x, int64_t pitch, int64_t cols,
                                              int64_t tokens, int box_tokens) {
  static const absl::StatusOr<Encode> encode = FindEncode();
  if (!encode.ok()) return encode.status();
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(tokens)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(pitch)};
  const cuuint32_t box[] = {kSliceCols, static_cast<cuuint32_t>(box_tokens)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result =
      (*encode)(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<uint8_t*>(x), sizes, strides,
                box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return map;
  return absl::InternalError(StrCat("cuTensorMapEncodeTiled: error ", static_cast<int>(result),
                                    " for x [", tokens, ", ", cols, "], pitch ", pitch));
}

}  // namespace nibble::w4a8
