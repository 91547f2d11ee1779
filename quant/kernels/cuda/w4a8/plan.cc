#include "quant/kernels/cuda/w4a8/plan.h"

#include <algorithm>

#include "quant/base/strings.h"

namespace nibble::w4a8 {
namespace {

// Of the two that share a multiprocessor: their smem minus the kilobyte that the system keeps of
// each.
int SharedBytes(const Device& device, int blocks) {
  return std::min(device.shared_bytes / blocks - 1024, device.block_shared_bytes);
}

int TokenTile(int64_t tokens, Kind kind) {
  if (kind != Kind::kFolded) return tokens <= 16 ? 16 : 64;
  if (tokens <= 8) return 8;
  if (tokens <= 16) return 16;
  return tokens <= 32 ? 32 : 64;
}

// Row tiles of a block and blocks of a row block: what is resident at once shares the memory's
// bandwidth by what it has in flight, so that all blocks, two a multiprocessor, should run at once,
// and with one a multiprocessor few multiprocessors should be left out.
struct RowPlan {
  int tiles;
  int splits;
};
RowPlan PlanRows(int64_t row_tiles, int64_t slices, const Device& device) {
  RowPlan rows = {1, 1};
  while (rows.tiles < 2 && row_tiles > 2 * device.multiprocessors) rows.tiles *= 2;
  const int64_t row_blocks = CeilDiv(row_tiles, rows.tiles);
  while (rows.splits < 4 && 2 * rows.splits * row_blocks <= device.multiprocessors &&
         4 * rows.splits <= slices) {
    rows.splits *= 2;
  }
  return rows;
}

}  // namespace

Regime ChooseRegime(int64_t tokens) {
  if (tokens <= kDecodeTokens) return Regime::kDecode;
  return tokens <= 256 ? Regime::kMedium : Regime::kPrefill;
}

DecodeShared DecodeSharedMemory(const DecodePlan& plan, const LinearShape& shape) {
  DecodeShared shared;
  shared.codes = plan.stages * plan.token_tile * kSliceCols;
  int code_bytes = plan.stages * plan.tiles * SliceBytes(shape.kind, shape.group_size);
  if (shape.max_rank > 0) code_bytes = std::max(code_bytes, kLorcSliceBytes);
  const int sum_bytes = plan.k_groups * plan.token_tile * SumPitch(plan.tiles) * 4;
  shared.factor = static_cast<int>(RoundUp(std::max(shared.codes + code_bytes, sum_bytes), 16));
  const int factor_bytes = static_cast<int>(LorcAUnits(shape.max_rank)) * 16;
  shared.t = shared.factor + plan.tiles * factor_bytes;
  const int t_bytes = shape.max_rank == 0 ? 0 : plan.token_tile * LorcPitch(shape.max_rank);
  shared.small = shared.t + plan.tiles * t_bytes;
  shared.barriers =
      shared.small + kFoldTableBytes + plan.token_tile * 4 + plan.tiles * kTileRows * 2;
  shared.bytes = shared.barriers + (2 * plan.stages + 1) * 8;
  return shared;
}

void CompletePlan(const LinearShape& shape, const Device& device, int blocks, int max_stages,
                  DecodePlan& plan) {
  plan.row_blocks = static_cast<int>(CeilDiv(shape.row_tiles, plan.tiles));
  plan.lorc_tiles = LorcTiles(shape.ranks);
  plan.lorc_pieces = plan.lorc_tiles > 0 ? kLorcPieces : 0;
  const int64_t part = CeilDiv(CeilDiv(shape.cols, kSliceCols), plan.parts());
  const int most = static_cast<int>(std::min<int64_t>(max_stages, part * plan.k_groups));
  const int budget = SharedBytes(device, blocks) - kSharedAlignment;
  plan.stages = 1;
  while (plan.stages < most) {
    ++plan.stages;
    if (DecodeSharedMemory(plan, shape).bytes <= budget) continue;
    --plan.stages;
    break;
  }
  plan.shared_bytes = DecodeSharedMemory(plan, shape).bytes + kSharedAlignment;
}

DecodePlan PlanDecode(const LinearShape& shape, const Device& device) {
  const RowPlan rows = PlanRows(shape.row_tiles, CeilDiv(shape.cols, kSliceCols), device);
  DecodePlan plan;
  plan.token_tile = TokenTile(shape.tokens, shape.kind);
  plan.tiles = rows.tiles;
  plan.k_groups = 2;
  plan.splits = rows.splits;
  // With many tokens, reading x again for every row block costs more than a cluster of twice as
  // many blocks, each with both row tiles of one part.
  if (plan.token_tile >= 32 && plan.tiles == 1) {
    plan.tiles = 2;
    plan.k_groups = 1;
    plan.splits *= 2;
  }
  CompletePlan(shape, device, 2, 64, plan);
  return plan;
}

std::string DecodePlan::ToString() const {
  return StrCat("decode: ", row_blocks, " row blocks of ", tiles, " tiles x ", k_groups,
                " parts x ", splits, " splits, ", token_tile, " tokens, ", stages, " stages, ",
                shared_bytes, " B shared, ", lorc_tiles, " LoRC tiles x ", lorc_pieces, " pieces",
                staggered ? ", staggered" : "");
}

}  // namespace nibble::w4a8
