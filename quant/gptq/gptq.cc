#include "quant/gptq/gptq.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/torch_status.h"
#include "quant/gptq/on_cuda.h"
#include "quant/gptq/rows.h"
#include "quant/gptq/solver.h"

namespace nibble {
namespace {

absl::Status CheckFactor(const std::string& name, const GptqFactor& factor, int64_t cols) {
  if (factor.hinv_upper.dim() == 2 && factor.hinv_upper.size(0) == cols &&
      factor.hinv_upper.size(1) == cols) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(StrCat(name, ": the Hessian's factor has ",
                                           factor.hinv_upper.numel(), " elements; expected ", cols,
                                           " x ", cols, ", one row for each input column"));
}

// f(row) for every row, spread over as many threads as LibTorch uses. (at::parallel_for would need
// OpenMP in this file.) Rows share nothing, so the result does not depend on the threads; f must
// not throw.
template <class Function>
void ForEachRow(int64_t rows, const Function& f) {
  constexpr int64_t kFewestRows = 8;  // worth a thread
  const int64_t threads =
      std::clamp<int64_t>(rows / kFewestRows, 1, std::max(1, at::get_num_threads()));
  const auto work = [&](int64_t thread) {
    for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; ++row) f(row);
  };
  std::vector<std::jthread> workers;
  for (int64_t thread = 1; thread < threads; ++thread) workers.emplace_back(work, thread);
  work(0);
}

// Scales from the original weights; in natural order they are replaced as groups are reached, and
// clamps are counted then.
std::vector<RowScales> InitialScales(const Solve& solve) {
  std::vector<RowScales> scales = ScalesOfRows(solve.spec, solve.original, solve.column_weights);
  if (solve.source == ScaleSource::kUpdatedWeights) {
    for (RowScales& row : scales) row.clamped = 0;
  }
  return scales;
}

QuantizedLinear SolveOnCpu(const Solve& solve, at::Tensor& weights) {
  const WeightSpec& spec = solve.spec;
  std::vector<RowScales> scales = InitialScales(solve);
  const int64_t rows = weights.size(0);
  const int64_t cols = weights.size(1);
  const at::Tensor order = solve.factor.order.contiguous();
  const at::Tensor hinv = solve.factor.hinv_upper.contiguous();
  float* const weight_data = weights.mutable_data_ptr<float>();
  std::vector<uint8_t> codes(rows * cols);
  const SolverPlan plan = {&spec, solve.source,
                           absl::MakeConstSpan(order.const_data_ptr<int64_t>(), cols),
                           hinv.const_data_ptr<float>(), cols};
  for (const ColumnBlock& block :
       MakeBlocks(cols, solve.block_columns, spec.group_size, solve.source)) {
    const at::Tensor errors = at::empty({rows, block.size()}, at::kFloat);
    float* const error_data = errors.mutable_data_ptr<float>();
    ForEachRow(rows, [&](int64_t row) {
      SolveBlock(plan, block, weight_data + row * cols, scales[row], codes.data() + row * cols,
                 error_data + row * block.size());
    });
    SpreadErrors(hinv, block, errors, weights);
  }
  return PackRows(spec, rows, cols, codes, scales);
}

}  // namespace

void SpreadErrors(const at::Tensor& hinv, const ColumnBlock& block, const at::Tensor& errors,
                  at::Tensor& weights) {
  const int64_t cols = hinv.size(1);
  const at::Tensor behind = hinv.slice(0, block.begin, block.end).slice(1, block.end, cols);
  weights.slice(1, block.end, cols).addmm_(errors, behind, /*beta=*/1, /*alpha=*/-1);
}

absl::StatusOr<QuantizedLinear> QuantizeGptq(const std::string& name, const at::Tensor& w,
                                             const GptqFactor& factor, const WeightSpec& spec,
                                             const GptqOptions& options,
                                             const at::Tensor& column_weights) {
  return CatchTorch([&]() -> absl::StatusOr<QuantizedLinear> {
    c10::InferenceMode guard;
    NIBBLE_RETURN_IF_ERROR(CheckWeights(name, w, spec));
    NIBBLE_RETURN_IF_ERROR(CheckSearch(name, w, spec, column_weights));
    if (column_weights.defined() && !options.act_order) {
      return absl::InvalidArgumentError(
          StrCat(name, ": found natural order, expected act_order to search scales in"));
    }
    NIBBLE_RETURN_IF_ERROR(CheckFactor(name, factor, w.size(1)));
    if (options.block_columns < 1) {
      return absl::InvalidArgumentError(
          StrCat(name, ": block_columns is ", options.block_columns, "; expected at least 1"));
    }

    const ScaleSource source =
        options.act_order ? ScaleSource::kOriginalWeights : ScaleSource::kUpdatedWeights;
    const at::Tensor original = w.masked_fill(factor.dead, 0).contiguous();
    const Solve solve = {spec, factor, original, options.block_columns, source, column_weights};
    at::Tensor weights = original.index_select(1, factor.order);
    NIBBLE_ASSIGN_OR_RETURN(QuantizedLinear result,
                            w.is_cuda() ? SolveOnCuda(solve, weights) : SolveOnCpu(solve, weights));
    if (!weights.isfinite().all().item<bool>()) {
      return absl::FailedPreconditionError(
          StrCat(name, ": GPTQ's updates overflowed; expected weights that stay finite"));
    }
    result.damping = factor.damping;
    result.damping_escalations = factor.damping_escalations;
    return result;
  });
}

}  // namespace nibble
