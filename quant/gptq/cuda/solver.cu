// Compiled without contraction of products and sums: the arithmetic is the CPU's to the bit.
#include <algorithm>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/gptq/cuda/row_scales.cuh"
#include "quant/gptq/cuda/solver.h"
#include "quant/kernels/cuda/launch.h"

namespace nibble {
namespace {

constexpr int kWarps = 16;  // rows of one thread block
constexpr int kThreads = kWarps * kLanes;
constexpr int kColumnsPerLane = kMostBlockColumns / kLanes;

__device__ int64_t RowOfWarp() { return int64_t{blockIdx.x} * kWarps + threadIdx.x / kLanes; }

// --- Scales from the original weights, and round-to-nearest.

template <class Code>
__device__ void ConstrainM1(int64_t groups, const RowScalesView& row) {
  int largest = -128;
  for (int64_t g = Lane(); g < groups; g += kLanes) {
    largest = max(largest, number::RoundedLog2(row.scale[g]).ceil);
  }
  largest = __reduce_max_sync(kAllLanes, largest);
  int clamped = 0;
  for (int64_t g = Lane(); g < groups; g += kLanes) {
    const int wanted = number::RoundedLog2(row.scale[g]).ceil;
    const int exponent = max(wanted, largest - kMaxExponentOffset);
    clamped += exponent != wanted ? 1 : 0;
    row.exponent[g] = static_cast<int8_t>(exponent);
    row.scale[g] = number::PowerOfTwo(exponent);
  }
  clamped = __reduce_add_sync(kAllLanes, clamped);
  if (Lane() == 0) *row.clamped = clamped;
}

template <class Code>
__device__ void ConstrainM2(const DeviceShape& shape, const float* weights, int64_t width,
                            int64_t groups, const RowScalesView& row) {
  float largest = 0;
  for (int64_t g = Lane(); g < groups; g += kLanes) largest = fmaxf(largest, row.scale[g]);
  const float row_scale = WarpMax(largest);
  int clamped = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t count = min(width, shape.cols - g * width);
    const int k = WarpM2Exponent<Code>(shape.spec, weights + g * width, count, row.scale[g],
                                       row_scale, &clamped);
    __syncwarp();  // every lane has read the scale
    if (Lane() == 0) {
      row.exponent[g] = static_cast<int8_t>(k);
      row.scale[g] = number::M2Scale(row_scale, k);
    }
  }
  if (Lane() == 0) {
    *row.row_scale = row_scale;
    *row.clamped = clamped;
  }
}

template <class Code>
__global__ void __launch_bounds__(kThreads)
    ScalesKernel(DeviceShape shape, int64_t width, int64_t groups, const float* weights,
                 DeviceRowScales scales) {
  const int64_t index = RowOfWarp();
  if (index >= shape.rows) return;
  const RowScalesView row(scales, index, groups);
  weights += index * shape.cols;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t count = min(width, shape.cols - g * width);
    const GroupScale group = WarpGroupScale<Code>(weights + g * width, count);
    if (Lane() != 0) continue;
    row.scale[g] = group.scale;
    if (Code::kAsymmetric) row.zero[g] = group.zero;
  }
  __syncwarp();  // lane 0's scales are there
  switch (shape.spec.constraint) {
    case ScaleConstraint::kNone:
      if (Lane() == 0) *row.clamped = 0;
      return;
    case ScaleConstraint::kM1:
      return ConstrainM1<Code>(groups, row);
    case ScaleConstraint::kM2:
      return ConstrainM2<Code>(shape, weights, width, groups, row);
  }
}

template <class Code>
__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(DeviceShape shape, int64_t width, int64_t groups, const float* weights,
                   DeviceRowScales scales, uint8_t* codes) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < shape.rows * shape.cols;
       i += stride) {
    const int64_t group = i / shape.cols * groups + i % shape.cols / width;
    codes[i] = Code::Quantize(weights[i], scales.scale[group],
                              Code::kAsymmetric ? scales.zero[group] : uint8_t{0});
  }
}

// --- GPTQ.

// The block's columns of one row: lane l holds columns l, l + 32, l + 64, l + 96 of the block.
struct LaneColumns {
  float weight[kColumnsPerLane];
  float scale[kColumnsPerLane];
  float hinv[kColumnsPerLane];  // of the diagonal
  float error[kColumnsPerLane];
  int column[kColumnsPerLane];  // original
  uint8_t zero[kColumnsPerLane];
};

template <class Code>
__device__ LaneColumns LoadColumns(const DeviceBlock& block, int64_t width, const float* weights,
                                   const float* hinv, const RowScalesView& row) {
  LaneColumns lane = {};
#pragma unroll
  for (int i = 0; i < kColumnsPerLane; ++i) {
    const int t = i * kLanes + Lane();
    lane.scale[i] = 1;
    lane.hinv[i] = 1;
    if (t >= block.end - block.begin) continue;
    lane.column[i] = static_cast<int>(block.order[block.begin + t]);
    lane.weight[i] = weights[block.begin + t];
    lane.hinv[i] = hinv[t * kMostBlockColumns + t];
    lane.scale[i] = row.scale[lane.column[i] / width];
    if (Code::kAsymmetric) lane.zero[i] = row.zero[lane.column[i] / width];
  }
  return lane;
}

// Natural order, at the first column of a group, the block's column j: the group's scale from its
// weights as they are now. `spill`: [kMostBlockColumns], the warp's own.
template <class Code>
__device__ void UpdateScale(const DeviceShape& shape, const DeviceBlock& block, int64_t width,
                            int64_t groups, int j, const float* weights, float* spill,
                            const RowScalesView& row, LaneColumns& lane) {
  const int64_t column = block.begin + j;
  const int64_t count = min(width, shape.cols - column);
  __syncwarp();  // the last group's values have been read
#pragma unroll
  for (int i = 0; i < kColumnsPerLane; ++i) spill[i * kLanes + Lane()] = lane.weight[i];
  __syncwarp();
  // A group that reaches beyond the block begins with it: its weights in memory are up to date.
  const float* values = column + count > block.end ? weights + column : spill + j;
  const GroupScale updated =
      WarpUpdateGroupScale<Code>(shape.spec, values, count, column / width, groups, row);
#pragma unroll
  for (int i = 0; i < kColumnsPerLane; ++i) {
    const int t = i * kLanes + Lane();
    if (t < j || t >= j + count) continue;
    lane.scale[i] = updated.scale;
    lane.zero[i] = updated.zero;
  }
}

template <class Code>
__device__ void SolveRow(const DeviceShape& shape, const DeviceBlock& block, int64_t width,
                         int64_t groups, const float* weights, const float* hinv, float* spill,
                         const RowScalesView& row, uint8_t* codes, LaneColumns& lane) {
  const int size = static_cast<int>(block.end - block.begin);
#pragma unroll
  for (int i = 0; i < kColumnsPerLane; ++i) {
    for (int owner = 0; owner < kLanes; ++owner) {
      const int j = i * kLanes + owner;
      if (j >= size) return;
      if (block.updates_scales && (block.begin + j) % width == 0) {
        UpdateScale<Code>(shape, block, width, groups, j, weights, spill, row, lane);
      }
      // Every lane does so with its own column; the owner's is the one that counts.
      const uint8_t code = Code::Quantize(lane.weight[i], lane.scale[i], lane.zero[i]);
      const float w_hat = Code::Dequantize(code, lane.scale[i], lane.zero[i]);
      const float own = (lane.weight[i] - w_hat) / lane.hinv[i];
      const float error = __shfl_sync(kAllLanes, own, owner);
      if (Lane() == owner) {
        codes[lane.column[i]] = code;
        lane.error[i] = error;
      }
#pragma unroll
      for (int k = i; k < kColumnsPerLane; ++k) {
        if (k > i || Lane() >= owner) {
          lane.weight[k] -= error * hinv[j * kMostBlockColumns + k * kLanes + Lane()];
        }
      }
    }
  }
}

template <class Code>
__global__ void __launch_bounds__(kThreads, 2)
    SolveKernel(DeviceShape shape, DeviceBlock block, int64_t width, int64_t groups, float* weights,
                DeviceRowScales scales, uint8_t* codes, float* errors) {
  extern __shared__ float shared[];
  float* const hinv = shared;  // [kMostBlockColumns, kMostBlockColumns], zeros beyond the block
  float* const spill = shared + kMostBlockColumns * (kMostBlockColumns + threadIdx.x / kLanes);
  const int size = static_cast<int>(block.end - block.begin);
  for (int i = threadIdx.x; i < kMostBlockColumns * kMostBlockColumns; i += kThreads) {
    const int r = i / kMostBlockColumns;
    const int c = i % kMostBlockColumns;
    hinv[i] =
        r < size && c < size ? block.hinv[(block.begin + r) * shape.cols + block.begin + c] : 0.f;
  }
  __syncthreads();
  const int64_t index = RowOfWarp();
  if (index >= shape.rows) return;
  const RowScalesView row(scales, index, groups);
  weights += index * shape.cols;
  LaneColumns lane = LoadColumns<Code>(block, width, weights, hinv, row);
  SolveRow<Code>(shape, block, width, groups, weights, hinv, spill, row, codes + index * shape.cols,
                 lane);
#pragma unroll
  for (int i = 0; i < kColumnsPerLane; ++i) {
    const int t = i * kLanes + Lane();
    if (t >= size) continue;
    weights[block.begin + t] = lane.weight[i];
    errors[index * size + t] = lane.error[i];
  }
}

constexpr int kSolveBytes =
    kMostBlockColumns * (kMostBlockColumns + kWarps) * static_cast<int>(sizeof(float));

// --- Launching.

absl::Status Check(std::string_view kernel, const DeviceShape& shape, const float* weights,
                   const DeviceRowScales& scales) {
  NIBBLE_RETURN_IF_ERROR(shape.spec.Validate());
  if (shape.rows <= 0 || shape.rows > INT32_MAX || shape.cols <= 0 || shape.cols > INT32_MAX) {
    return absl::InvalidArgumentError(StrCat(kernel, ": found shape [", shape.rows, ", ",
                                             shape.cols, "], expected positive sizes"));
  }
  NIBBLE_RETURN_IF_ERROR(CheckPointer("weights", weights, sizeof(float)));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("scale", scales.scale, sizeof(float)));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("clamped", scales.clamped, sizeof(int32_t)));
  if (shape.spec.asymmetric) NIBBLE_RETURN_IF_ERROR(CheckPointer("zero", scales.zero, 1));
  if (shape.spec.constraint == ScaleConstraint::kNone) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(CheckPointer("exponent", scales.exponent, 1));
  if (shape.spec.constraint == ScaleConstraint::kM1) return absl::OkStatus();
  return CheckPointer("row_scale", scales.row_scale, sizeof(float));
}

unsigned BlocksOfRows(int64_t rows) { return static_cast<unsigned>((rows + kWarps - 1) / kWarps); }

}  // namespace

absl::Status ComputeScales(const DeviceShape& shape, const float* weights,
                           const DeviceRowScales& scales, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Check("ComputeScales", shape, weights, scales));
  number::VisitWeight(shape.spec, [&](auto code) {
    ScalesKernel<decltype(code)><<<BlocksOfRows(shape.rows), kThreads, 0, stream>>>(
        shape, GroupWidth(shape.cols, shape.spec.group_size),
        GroupCount(shape.cols, shape.spec.group_size), weights, scales);
  });
  return CheckLaunch("ComputeScales");
}

absl::Status QuantizeRows(const DeviceShape& shape, const float* weights,
                          const DeviceRowScales& scales, uint8_t* codes, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Check("QuantizeRows", shape, weights, scales));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("codes", codes, 1));
  const int64_t blocks = (shape.rows * shape.cols + kThreads - 1) / kThreads;
  number::VisitWeight(shape.spec, [&](auto code) {
    QuantizeKernel<decltype(code)>
        <<<static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX)), kThreads, 0, stream>>>(
            shape, GroupWidth(shape.cols, shape.spec.group_size),
            GroupCount(shape.cols, shape.spec.group_size), weights, scales, codes);
  });
  return CheckLaunch("QuantizeRows");
}

absl::Status SolveBlocks(const DeviceShape& shape, const DeviceBlock& block, float* weights,
                         const DeviceRowScales& scales, uint8_t* codes, float* errors,
                         cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(Check("SolveBlocks", shape, weights, scales));
  if (block.begin < 0 || block.end <= block.begin || block.end > shape.cols ||
      block.end - block.begin > kMostBlockColumns) {
    return absl::InvalidArgumentError(StrCat("SolveBlocks: found columns ", block.begin, " to ",
                                             block.end, ", expected 1..", kMostBlockColumns, " of ",
                                             shape.cols));
  }
  NIBBLE_RETURN_IF_ERROR(CheckPointer("order", block.order, sizeof(int64_t)));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("hinv", block.hinv, sizeof(float)));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("codes", codes, 1));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("errors", errors, sizeof(float)));
  return number::VisitWeight(shape.spec, [&](auto code) {
    const auto kernel = SolveKernel<decltype(code)>;
    NIBBLE_RETURN_IF_ERROR(CheckCuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSolveBytes),
        "SolveBlocks"));
    kernel<<<BlocksOfRows(shape.rows), kThreads, kSolveBytes, stream>>>(
        shape, block, GroupWidth(shape.cols, shape.spec.group_size),
        GroupCount(shape.cols, shape.spec.group_size), weights, scales, codes, errors);
    return CheckLaunch("SolveBlocks");
  });
}

}  // namespace nibble
