#include "quant/gptq/on_cuda.h"

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/gptq/cuda/solver.h"
#include "quant/gptq/packing.h"
#include "quant/gptq/scale_search.h"
#include "quant/kernels/device/launch.h"

namespace nibble {
namespace {

template <class T>
T* DataOrNull(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

DeviceRowScales Pointers(const MatrixScales& scales) {
  return {.scale = scales.scale.mutable_data_ptr<float>(),
          .zero = DataOrNull<uint8_t>(scales.zero),
          .row_scale = DataOrNull<float>(scales.row_scale),
          .exponent = DataOrNull<int8_t>(scales.exponent),
          .clamped = scales.clamped.mutable_data_ptr<int32_t>()};
}

absl::StatusOr<MatrixScales> ScalesOf(const DeviceShape& shape, const at::Tensor& w,
                                      const at::Tensor& column_weights, cudaStream_t stream) {
  if (column_weights.defined()) return SearchScales(shape.spec, w, column_weights);
  MatrixScales scales = EmptyScales(shape.spec, shape.rows, shape.cols, w.device());
  NIBBLE_RETURN_IF_ERROR(ComputeScales(shape, w.const_data_ptr<float>(), Pointers(scales), stream));
  return scales;
}

at::Tensor EmptyCodes(const at::Tensor& weights) {
  return at::empty(weights.sizes(), weights.options().dtype(at::kByte));
}

}  // namespace

absl::StatusOr<QuantizedLinear> SolveOnCuda(const Solve& solve, at::Tensor& weights) {
  if (solve.block_columns > kMostBlockColumns) {
    return absl::InvalidArgumentError(StrCat("block_columns: found ", solve.block_columns,
                                             ", expected at most ", kMostBlockColumns,
                                             " on a GPU"));
  }
  const CudaScope scope(weights.device());
  const int64_t rows = weights.size(0);
  const int64_t cols = weights.size(1);
  const DeviceShape shape = {solve.spec, rows, cols};
  NIBBLE_ASSIGN_OR_RETURN(const MatrixScales scales,
                          ScalesOf(shape, solve.original, solve.column_weights, scope.stream()));
  const bool updates_scales = solve.source == ScaleSource::kUpdatedWeights;
  if (updates_scales) scales.clamped.zero_();  // counted when the groups are reached
  const at::Tensor codes = EmptyCodes(weights);
  const at::Tensor order = solve.factor.order.contiguous();
  const at::Tensor hinv = solve.factor.hinv_upper.contiguous();
  for (const ColumnBlock& block :
       MakeBlocks(cols, solve.block_columns, solve.spec.group_size, solve.source)) {
    const at::Tensor errors = at::empty({rows, block.size()}, weights.options());
    const DeviceBlock on_device = {.begin = block.begin,
                                   .end = block.end,
                                   .updates_scales = updates_scales,
                                   .order = order.const_data_ptr<int64_t>(),
                                   .hinv = hinv.const_data_ptr<float>()};
    NIBBLE_RETURN_IF_ERROR(SolveBlocks(shape, on_device, weights.mutable_data_ptr<float>(),
                                       Pointers(scales), codes.mutable_data_ptr<uint8_t>(),
                                       errors.mutable_data_ptr<float>(), scope.stream()));
    SpreadErrors(hinv, block, errors, weights);
  }
  return PackMatrix(solve.spec, codes, scales);
}

absl::StatusOr<QuantizedLinear> RoundOnCuda(const WeightSpec& spec, const at::Tensor& w,
                                            const at::Tensor& column_weights) {
  const CudaScope scope(w.device());
  const DeviceShape shape = {spec, w.size(0), w.size(1)};
  NIBBLE_ASSIGN_OR_RETURN(const MatrixScales scales,
                          ScalesOf(shape, w, column_weights, scope.stream()));
  const at::Tensor codes = EmptyCodes(w);
  NIBBLE_RETURN_IF_ERROR(QuantizeRows(shape, w.const_data_ptr<float>(), Pointers(scales),
                                      codes.mutable_data_ptr<uint8_t>(), scope.stream()));
  return PackMatrix(spec, codes, scales);
}

}  // namespace nibble
