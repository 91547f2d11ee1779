#include <ATen/ATen.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "quant/kernels/cpu/arranged_linear.h"
#include "quant/kernels/cpu/parallel.h"
#include "quant/kernels/cpu/tiled_input.h"
#include "quant/kernels/kernels.h"

namespace nibble {
namespace {

// Panels of one matrix that one task multiplies by every token.
struct PanelTask {
  size_t linear = 0;
  int64_t first_panel = 0;
  int panel_count = 0;
};

// The last tasks of a matrix are half as large as the others, so that no thread waits long.
void AddTasks(size_t linear, const ArrangedMatrix& matrix, std::vector<PanelTask>& tasks) {
  int64_t left = matrix.panel_count();
  while (left > 0) {
    const int64_t most = left > kMaxTilePanels ? kMaxTilePanels : kMaxTilePanels / 2;
    const int64_t count = std::min<int64_t>(left, most);
    tasks.push_back({linear, matrix.panel_count() - left, static_cast<int>(count)});
    left -= count;
  }
}

// Sums of one tile, of which only those used are set to zero: [tokens, panels, 16].
class Totals {
 public:
  Totals(int tokens, int panels) {
    std::fill_n(values_, int64_t{tokens} * panels * kPanelRows, 0.0f);
  }
  float* data() { return values_; }

 private:
  float values_[kMaxTileTokens * kMaxTilePanels * kPanelRows];
};

// totals += the task's panels times the tile.
void MultiplyTile(const ArrangedMatrix& matrix, const PanelTask& task, const TiledInput& x,
                  int64_t tile, Totals& totals) {
  TileInputs inputs;
  matrix.Describe(task.first_panel, task.panel_count, inputs);
  x.Describe(tile, inputs);
  matrix.kernels().multiply(inputs, totals.data());
}

// Values that an activation's rounding made are bf16 numbers.
TiledInput TileFor(absl::Span<const LinearWeights* const> linears, const at::Tensor& values,
                   bool rounded) {
  const bool exact = std::ranges::all_of(linears, [](const LinearWeights* weights) {
    const ArrangedLinear& linear = *weights->arranged;
    const bool b = !linear.lorc_b || linear.lorc_b->kind() != PanelKind::kFloat;
    return b && linear.weight.kind() != PanelKind::kFloat;
  });
  const ArrangedMatrix& matrix = linears[0]->arranged->weight;
  const TileKernels& kernels = matrix.kernels();
  TiledInput tiled(values.size(0), matrix.cols(), matrix.padded_cols(), kernels.tile_tokens,
                   rounded && exact && kernels.takes_pairs);
  tiled.Fill(values.const_data_ptr<float>());
  return tiled;
}

// x B^T of the linears that have LoRC factors, tiled for the product with A; null for the others.
std::vector<std::unique_ptr<TiledInput>> MultiplyB(absl::Span<const LinearWeights* const> linears,
                                                   const TiledInput& x, int64_t tokens) {
  std::vector<std::unique_ptr<TiledInput>> products(linears.size());
  std::vector<PanelTask> tasks;
  for (size_t i = 0; i < linears.size(); ++i) {
    const ArrangedLinear& linear = *linears[i]->arranged;
    if (!linear.lorc_b) continue;
    const ArrangedMatrix& a = *linear.lorc_a;
    products[i] = std::make_unique<TiledInput>(tokens, a.cols(), a.padded_cols(),
                                               a.kernels().tile_tokens, false);
    AddTasks(i, *linear.lorc_b, tasks);
  }
  ParallelTasks(static_cast<int64_t>(tasks.size()), [&](int64_t index) {
    const PanelTask& task = tasks[index];
    const ArrangedMatrix& b = *linears[task.linear]->arranged->lorc_b;
    const int64_t first = task.first_panel * kPanelRows;
    const int64_t rows = std::min<int64_t>(task.panel_count * kPanelRows, b.rows() - first);
    for (int64_t tile = 0; tile < x.tiles(); ++tile) {
      const int count = x.token_count(tile);
      Totals totals(count, task.panel_count);
      MultiplyTile(b, task, x, tile, totals);
      for (int t = 0; t < count; ++t) {
        const float* from = totals.data() + t * task.panel_count * kPanelRows;
        for (int64_t row = 0; row < rows; ++row) {
          products[task.linear]->Put(tile, first + row, t, from[row]);
        }
      }
    }
  });
  return products;
}

// One linear's y, and what it takes beside the products: null where absent.
struct Output {
  Output(const LinearWeights& weights, const LinearInput& x)
      : tensor(at::empty({x.values.size(0), weights.arranged->weight.rows()}, at::kFloat)),
        y(tensor.mutable_data_ptr<float>()),
        rows(tensor.size(1)),
        scales(x.scales.defined() ? x.scales.const_data_ptr<float>() : nullptr),
        bias(weights.bias.defined() ? weights.bias.const_data_ptr<float>() : nullptr) {}

  at::Tensor tensor;
  float* y;
  int64_t rows;
  const float* scales;  // of the tokens
  const float* bias;
};

// Those rows of a tile's totals that the matrix has, times the token's scale, plus the bias.
void StoreTile(const PanelTask& task, const TiledInput& x, int64_t tile, const float* totals,
               const Output& output) {
  const int64_t first = task.first_panel * kPanelRows;
  const int64_t width = std::min<int64_t>(task.panel_count * kPanelRows, output.rows - first);
  for (int t = 0; t < x.token_count(tile); ++t) {
    const int64_t token = x.first_token(tile) + t;
    const float scale = output.scales == nullptr ? 1 : output.scales[token];
    float* to = output.y + token * output.rows + first;
    const float* from = totals + t * task.panel_count * kPanelRows;
    for (int64_t i = 0; i < width; ++i) to[i] = scale * from[i];
    if (output.bias == nullptr) continue;
    for (int64_t i = 0; i < width; ++i) to[i] += output.bias[first + i];
  }
}

std::vector<at::Tensor> ArrangedLinears(absl::Span<const LinearWeights* const> linears,
                                        const LinearInput& input) {
  const LinearInput x = {input.values.contiguous(), input.scales};
  const TiledInput tiled = TileFor(linears, x.values, x.scales.defined());
  const auto low_rank = MultiplyB(linears, tiled, x.values.size(0));
  std::vector<Output> outputs;
  std::vector<PanelTask> tasks;
  for (size_t i = 0; i < linears.size(); ++i) {
    outputs.emplace_back(*linears[i], x);
    AddTasks(i, linears[i]->arranged->weight, tasks);
  }
  ParallelTasks(static_cast<int64_t>(tasks.size()), [&](int64_t index) {
    const PanelTask& task = tasks[index];
    const ArrangedLinear& linear = *linears[task.linear]->arranged;
    for (int64_t tile = 0; tile < tiled.tiles(); ++tile) {
      Totals totals(tiled.token_count(tile), task.panel_count);
      MultiplyTile(linear.weight, task, tiled, tile, totals);
      if (low_rank[task.linear] != nullptr) {
        MultiplyTile(*linear.lorc_a, task, *low_rank[task.linear], tile, totals);
      }
      StoreTile(task, tiled, tile, totals.data(), outputs[task.linear]);
    }
  });
  std::vector<at::Tensor> tensors;
  for (Output& output : outputs) tensors.push_back(std::move(output.tensor));
  return tensors;
}

at::Tensor TrueValueLinear(const LinearWeights& weights, const at::Tensor& x) {
  at::Tensor y = at::linear(x, weights.weight, weights.bias);
  if (weights.lorc_a.defined()) y += at::linear(at::linear(x, weights.lorc_b), weights.lorc_a);
  return y;
}

at::Tensor ToTensor(const ArrangedMatrix& matrix, const at::Tensor& rows) {
  const int64_t count = rows.numel();
  at::Tensor out = at::empty({count, matrix.cols()}, at::kFloat);
  for (int64_t i = 0; i < count; ++i) {
    matrix.Row(rows.data_ptr<int64_t>()[i],
               absl::MakeSpan(out.data_ptr<float>() + i * matrix.cols(), matrix.cols()));
  }
  return out;
}

ArrangedMatrix FromTensor(const at::Tensor& values) {
  const at::Tensor dense = values.contiguous();
  return ArrangedMatrix::FromValues(absl::MakeSpan(dense.data_ptr<float>(), dense.numel()),
                                    dense.size(0), dense.size(1));
}

}  // namespace

void Arrange(const QuantizedMatrix* matrix, LinearWeights& weights) {
  auto arranged = std::make_shared<ArrangedLinear>(ArrangedLinear{
      matrix != nullptr ? ArrangedMatrix::FromQuantized(*matrix) : FromTensor(weights.weight),
      std::nullopt, std::nullopt});
  if (weights.lorc_a.defined()) {
    arranged->lorc_a = FromTensor(weights.lorc_a);
    arranged->lorc_b = FromTensor(weights.lorc_b);
  }
  weights.weight.reset();
  weights.lorc_a.reset();
  weights.lorc_b.reset();
  weights.arranged = std::move(arranged);
}

int64_t WeightBytes(const LinearWeights& weights) {
  int64_t bytes = 0;
  for (const at::Tensor* tensor :
       {&weights.weight, &weights.bias, &weights.lorc_a, &weights.lorc_b}) {
    if (tensor->defined()) bytes += static_cast<int64_t>(tensor->nbytes());
  }
  if (weights.arranged == nullptr) return bytes;
  bytes += weights.arranged->weight.bytes();
  if (weights.arranged->lorc_a) {
    bytes += weights.arranged->lorc_a->bytes() + weights.arranged->lorc_b->bytes();
  }
  return bytes;
}

std::vector<at::Tensor> Linears(absl::Span<const LinearWeights* const> linears,
                                const LinearInput& x) {
  if (linears[0]->arranged != nullptr) return ArrangedLinears(linears, x);
  const at::Tensor values = x.TrueValues();
  std::vector<at::Tensor> outputs;
  for (const LinearWeights* linear : linears) outputs.push_back(TrueValueLinear(*linear, values));
  return outputs;
}

at::Tensor Linear(const LinearWeights& weights, const at::Tensor& x) {
  return Linears({&weights}, {x, {}})[0];
}

void ExpectLinears(absl::Span<const LinearWeights* const> linears) {
  std::vector<absl::Span<const uint8_t>> ranges;
  for (const LinearWeights* linear : linears) {
    if (linear->arranged != nullptr) ranges.push_back(linear->arranged->weight.panels());
  }
  ExpectReads(ranges);
}

at::Tensor GatherRows(const LinearWeights& weights, const at::Tensor& rows) {
  if (weights.arranged == nullptr) {
    return weights.weight.index_select(0, rows.to(weights.weight.device()));
  }
  return ToTensor(weights.arranged->weight, rows);
}

}  // namespace nibble
