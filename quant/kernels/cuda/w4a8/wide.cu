#include <bit>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/kernels/cuda/launch.h"
#include "quant/kernels/cuda/w4a8/decode.h"
#include "quant/kernels/cuda/w4a8/tensor_map.h"
#include "quant/kernels/cuda/w4a8/wide.h"
#include "quant/kernels/cuda/w4a8/wide_kernel.cuh"

namespace nibble::w4a8 {
namespace {

using Kernel = void (*)(WideArguments);

template <WideSource kSource, bool kFine>
Kernel KernelOf(const WidePlan& plan) {
  const bool known = plan.token_tile == (plan.promoted ? 128 : 256);
  if (known && plan.row_tiles == 2) {
    if (plan.promoted) return WideKernel<WideConfig<kSource, 2, 128, true, kFine>>;
    return WideKernel<WideConfig<kSource, 2, 256, false, kFine>>;
  }
  if constexpr (kSource == WideSource::kFolded) {
    if (!known || plan.row_tiles != 1) return nullptr;
    if (plan.promoted) return WideKernel<WideConfig<kSource, 1, 128, true, kFine>>;
    return WideKernel<WideConfig<kSource, 1, 256, false, kFine>>;
  }
  return nullptr;
}

template <WideSource kSource>
Kernel KernelOf(const WidePlan& plan, bool fine) {
  return fine ? KernelOf<kSource, true>(plan) : KernelOf<kSource, false>(plan);
}

// Null for a plan that PlanWide does not make. `fine`: groups are smaller than a slice.
Kernel FindKernel(const WidePlan& plan, bool fine) {
  return plan.source == WideSource::kExpanded ? KernelOf<WideSource::kExpanded>(plan, fine)
                                              : KernelOf<WideSource::kFolded>(plan, fine);
}

// Whether y's pieces of 8 rows, which begin at multiples of 8 within a segment, are aligned.
bool WideStores(const PreparedLinear& weights, const LinearCall& call) {
  bool aligned = weights.rows % 8 == 0 && reinterpret_cast<uintptr_t>(call.y) % 16 == 0;
  for (int s = 0; s < weights.segments.count; ++s) {
    aligned = aligned && weights.segments.at[s].first_col % 8 == 0;
  }
  return aligned;
}

absl::StatusOr<Device> FindDevice() {
  int ordinal = 0;
  Device device;
  NIBBLE_RETURN_IF_ERROR(CheckCuda(cudaGetDevice(&ordinal), "cudaGetDevice"));
  const auto read = [&](cudaDeviceAttr attribute, int& value) {
    return CheckCuda(cudaDeviceGetAttribute(&value, attribute, ordinal), "cudaDeviceGetAttribute");
  };
  NIBBLE_RETURN_IF_ERROR(read(cudaDevAttrMultiProcessorCount, device.multiprocessors));
  NIBBLE_RETURN_IF_ERROR(read(cudaDevAttrMaxSharedMemoryPerBlockOptin, device.block_shared_bytes));
  return device;
}

WideArguments MakeArguments(const WidePlan& plan, const PreparedLinear& weights,
                            const LinearCall& call) {
  const LinearShape shape = ShapeOf(weights, call.tokens);
  const WideWorkspace workspace = WideWorkspaceMemory(shape, plan.source);
  auto* bytes = static_cast<uint8_t*>(call.workspace);  // null where nothing of it is used
  const int groups = GroupsPerSlice(weights.group_size);
  WideArguments args = {};
  args.output = {.row_scale = weights.row_scale,
                 .bias = weights.bias,
                 .x_scale = call.x_scale,
                 .y = call.y,
                 .y_f32 = call.y_f32,
                 .rows = weights.rows,
                 .tokens = static_cast<int>(call.tokens),
                 .wide_stores = WideStores(weights, call),
                 .segments = weights.segments,
                 .lorc_a = weights.lorc_a,
                 .t = reinterpret_cast<const __nv_bfloat16*>(bytes + workspace.t),
                 .ranks = weights.ranks};
  args.expand = {.slices = weights.slices,
                 .expanded = bytes + workspace.expanded,
                 .counters = reinterpret_cast<uint32_t*>(bytes),
                 .row_tiles = static_cast<int>(weights.row_tiles),
                 .slice_count = static_cast<int>(weights.slice_count()),
                 .slice_bytes = SliceBytes(weights.kind, weights.group_size),
                 .group_shift = 3 - std::countr_zero(static_cast<unsigned>(groups))};
  args.tables = MakeFoldTables(weights.format);
  args.plan = plan;
  args.shared = WideSharedMemory(plan, shape);
  return args;
}

absl::Status LaunchKernel(Kernel kernel, const WideArguments& args, bool overlap_previous,
                          cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckCuda(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, args.plan.shared_bytes),
      StrCat("W4A8 ", args.plan.ToString())));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(args.plan.cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(args.plan.blocks()));
  config.blockDim = dim3(kWideThreads);
  config.dynamicSmemBytes = args.plan.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = overlap_previous ? 2 : 1;
  return CheckCuda(cudaLaunchKernelEx(&config, kernel, args), "W4A8 wide");
}

}  // namespace

size_t WideWorkspaceBytes(const PreparedLinear& weights, int64_t tokens) {
  const LinearShape shape = ShapeOf(weights, tokens);
  const WideSource source = PlanWide(shape, true).source;
  if (source == WideSource::kFolded && weights.ranks == 0) return 0;
  return WideWorkspaceMemory(shape, source).bytes;
}

absl::Status LaunchWide(const PreparedLinear& weights, const LinearCall& call,
                        cudaStream_t stream) {
  NIBBLE_ASSIGN_OR_RETURN(const Device device, FindDevice());
  const bool promoted = call.accumulation == Accumulation::kPromoted;
  return LaunchWide(PlanWide(ShapeOf(weights, call.tokens), promoted, device), weights, call,
                    stream);
}

absl::Status LaunchWide(const WidePlan& plan, const PreparedLinear& weights, const LinearCall& call,
                        cudaStream_t stream) {
  const Kernel kernel = FindKernel(plan, GroupsPerSlice(weights.group_size) > 1);
  if (kernel == nullptr || plan.stages < 2) {
    return absl::InvalidArgumentError(
        StrCat("wide plan: found ", plan.ToString(), ", expected one that has a kernel"));
  }
  if (plan.source == WideSource::kExpanded &&
      4 * (weights.row_tiles + 1) > kWorkspaceCounterBytes) {
    return absl::InvalidArgumentError(StrCat("rows: found ", weights.rows, ", expected at most ",
                                             (kWorkspaceCounterBytes / 4 - 1) * kTileRows));
  }
  WideArguments args = MakeArguments(plan, weights, call);
  NIBBLE_ASSIGN_OR_RETURN(args.x, MakeActivationMap(call.x, call.x_pitch, weights.cols, call.tokens,
                                                    plan.token_tile / plan.cluster));
  if (weights.ranks > 0) {
    NIBBLE_RETURN_IF_ERROR(
        LaunchLorcProduct(weights, call, const_cast<__nv_bfloat16*>(args.output.t), stream));
  }
  return LaunchKernel(kernel, args, call.overlap_previous, stream);
}

}  // namespace nibble::w4a8
