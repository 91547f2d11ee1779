#include <bit>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/kernels/cuda/launch.h"
#include "quant/kernels/cuda/w4a8/decode.h"
#include "quant/kernels/cuda/w4a8/decode_arguments.h"
#include "quant/kernels/cuda/w4a8/tensor_map.h"

namespace nibble::w4a8 {
namespace {

// The counters of LorcWorkspace: done, seen and one a LoRC tile.
static_assert(kMaxSegments * LorcTiles(kMaxRank) + 2 <= kWorkspaceCounterBytes / 4);

int64_t LorcSumBytes(const DecodePlan& plan) {
  return int64_t{plan.lorc_blocks()} * kTileRows * plan.token_tile * sizeof(float);
}

LorcWorkspace MakeLorcWorkspace(const DecodePlan& plan, void* workspace) {
  if (plan.lorc_tiles == 0) return {};
  auto* bytes = static_cast<uint8_t*>(workspace);
  auto* counters = static_cast<uint32_t*>(workspace);
  return {
      .done = counters,
      .seen = counters + 1,
      .pieces = counters + 2,
      .sums = reinterpret_cast<float*>(bytes + kWorkspaceCounterBytes),
      .t = reinterpret_cast<__nv_bfloat16*>(bytes + kWorkspaceCounterBytes + LorcSumBytes(plan))};
}

absl::StatusOr<DecodeKernelPointer> FindKernel(const DecodePlan& plan,
                                               const PreparedLinear& weights) {
  const int groups = GroupsPerSlice(weights.group_size);
  const DecodeKernelPointer kernel =
      weights.kind == Kind::kFolded ? FoldedDecodeKernel(groups, plan.token_tile)
                                    : ScaledDecodeKernel(weights.kind, groups, plan.token_tile);
  const auto power = [](int n) { return std::has_single_bit(static_cast<unsigned>(n)); };
  const bool shared_out = power(plan.k_groups) && power(plan.splits) && plan.splits <= 8 &&
                          plan.lorc_blocks() % plan.splits == 0 &&
                          (plan.lorc_tiles == 0 || power(plan.lorc_pieces));
  if (kernel == nullptr || plan.warpgroups() > kMaxWarpgroups || !shared_out) {
    return absl::InvalidArgumentError(
        StrCat("decode plan: found ", plan.ToString(), ", expected one that has a kernel"));
  }
  NIBBLE_RETURN_IF_ERROR(CheckCuda(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes),
      StrCat("W4A8 decode with ", plan.shared_bytes, " B of shared memory")));
  return kernel;
}

// A launch as `config` with at most two attributes, which lie beside it.
struct LaunchConfig {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};

  LaunchConfig(const DecodePlan& plan, bool overlap_previous, cudaStream_t stream) {
    config.gridDim = dim3(plan.blocks());
    config.blockDim = dim3(plan.threads());
    config.dynamicSmemBytes = plan.shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    if (plan.splits > 1) {
      cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim = {static_cast<unsigned>(plan.splits), 1, 1};
    }
    if (overlap_previous) {
      cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
      overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      overlap.val.programmaticStreamSerializationAllowed = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;
};

}  // namespace

LinearShape ShapeOf(const PreparedLinear& weights, int64_t tokens) {
  return {.tokens = tokens,
          .row_tiles = weights.row_tiles,
          .cols = weights.cols,
          .kind = weights.kind,
          .group_size = weights.group_size,
          .ranks = weights.ranks,
          .max_rank = weights.max_rank};
}

size_t DecodeWorkspaceBytes(const PreparedLinear& weights, int64_t tokens) {
  if (weights.ranks == 0) return 0;
  const DecodePlan plan = PlanDecode(ShapeOf(weights, tokens));
  return kWorkspaceCounterBytes + LorcSumBytes(plan) +
         int64_t{weights.ranks} * plan.token_tile * sizeof(__nv_bfloat16);
}

absl::Status LaunchDecode(const DecodePlan& plan, const PreparedLinear& weights,
                          const LinearCall& call, cudaStream_t stream) {
  NIBBLE_ASSIGN_OR_RETURN(const DecodeKernelPointer kernel, FindKernel(plan, weights));
  DecodeArguments args;
  NIBBLE_ASSIGN_OR_RETURN(
      args.x, MakeActivationMap(call.x, call.x_pitch, weights.cols, call.tokens, plan.token_tile));
  args.x_rows = call.x;
  args.x_pitch = call.x_pitch;
  args.cols = static_cast<int>(weights.cols);
  args.weights = weights;
  args.plan = plan;
  args.shared = DecodeSharedMemory(plan, ShapeOf(weights, call.tokens));
  args.slice_count = static_cast<int>(weights.slice_count());
  args.slice_bytes = SliceBytes(weights.kind, weights.group_size);
  args.part_slices = static_cast<int>(CeilDiv(args.slice_count, plan.parts()));
  if (plan.lorc_tiles > 0) {
    args.piece_slices = static_cast<int>(CeilDiv(args.slice_count, plan.lorc_pieces));
  }
  args.tokens = static_cast<int>(call.tokens);
  args.x_scale = call.x_scale;
  args.y = call.y;
  args.y_f32 = call.y_f32;
  args.lorc = MakeLorcWorkspace(plan, call.workspace);
  const LaunchConfig launch(plan, call.overlap_previous, stream);
  return CheckCuda(cudaLaunchKernelEx(&launch.config, kernel, args), "W4A8 decode");
}

absl::StatusOr<int> ResidentBlocks(const DecodePlan& plan, const PreparedLinear& weights) {
  NIBBLE_ASSIGN_OR_RETURN(const DecodeKernelPointer kernel, FindKernel(plan, weights));
  int device = 0;
  int multiprocessors = 0;
  int blocks = 0;
  NIBBLE_RETURN_IF_ERROR(CheckCuda(cudaGetDevice(&device), "cudaGetDevice"));
  NIBBLE_RETURN_IF_ERROR(
      CheckCuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
                "cudaDeviceGetAttribute"));
  if (plan.splits == 1) {
    NIBBLE_RETURN_IF_ERROR(CheckCuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                                         &blocks, kernel, plan.threads(), plan.shared_bytes),
                                     "cudaOccupancyMaxActiveBlocksPerMultiprocessor"));
    return blocks * multiprocessors;
  }
  const LaunchConfig launch(plan, false, nullptr);
  NIBBLE_RETURN_IF_ERROR(CheckCuda(cudaOccupancyMaxActiveClusters(&blocks, kernel, &launch.config),
                                   "cudaOccupancyMaxActiveClusters"));
  return blocks * plan.splits;
}

}  // namespace nibble::w4a8
