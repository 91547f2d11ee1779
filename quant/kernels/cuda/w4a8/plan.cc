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

// The most parts of K such that all blocks, two a multiprocessor, run at once: what is resident
// shares the memory's bandwidth evenly, whatever the number of blocks.
int Splits(int64_t row_tiles, int64_t slices, const Device& device) {
  const int64_t row_pairs = CeilDiv(row_tiles, 2);
  int splits = 8;
  while (splits > 1 && (row_pairs * splits > 2 * device.multiprocessors || slices < splits)) {
    splits /= 2;
  }
  return splits;
}

}  // namespace

Regime ChooseRegime(int64_t tokens) {
  if (tokens <= kDecodeTokens) return Regime::kDecode;
  return tokens <= 256 ? Regime::kMedium : Regime::kPrefill;
}

DecodeShared DecodeSharedMemory(const DecodePlan& plan, const LinearShape& shape) {
  DecodeShared shared;
  const int slice_bytes = SliceBytes(shape.kind, shape.group_size);
  shared.codes = plan.stages * plan.token_tile * kSliceCols;
  const int code_bytes = plan.stages * plan.warpgroups * slice_bytes;
  const int sum_bytes = plan.token_tile * SumPitch(plan.warpgroups) * 4;
  shared.lorc = shared.codes + static_cast<int>(RoundUp(std::max(code_bytes, sum_bytes), 16));
  const int factor_bytes = static_cast<int>(LorcAUnits(shape.max_rank)) * 16;
  const int t_bytes = shape.max_rank == 0 ? 0 : plan.token_tile * LorcPitch(shape.max_rank);
  shared.small = shared.lorc + plan.warpgroups * (factor_bytes + t_bytes);
  shared.barriers = shared.small + kFoldTableBytes + plan.token_tile * 4;
  shared.bytes = shared.barriers + (2 * plan.stages + 1) * 8;
  return shared;
}

DecodePlan PlanDecode(const LinearShape& shape, const Device& device) {
  const int64_t slices = CeilDiv(shape.cols, kSliceCols);
  DecodePlan plan;
  plan.token_tile = TokenTile(shape.tokens, shape.kind);
  plan.warpgroups = 2;
  plan.splits = Splits(shape.row_tiles, slices, device);
  plan.row_blocks = static_cast<int>(CeilDiv(shape.row_tiles, plan.warpgroups));
  plan.lorc_tiles = LorcTiles(shape.ranks);
  plan.lorc_pieces = plan.lorc_tiles > 0 ? kLorcPieces : 0;
  const int budget = SharedBytes(device, 2) - kSharedAlignment;
  const int64_t depth = CeilDiv(slices, plan.splits);
  do {
    ++plan.stages;
    plan.shared_bytes = DecodeSharedMemory(plan, shape).bytes;
  } while (plan.stages < depth && plan.shared_bytes <= budget);
  if (plan.shared_bytes > budget && plan.stages > 1) {
    --plan.stages;
    plan.shared_bytes = DecodeSharedMemory(plan, shape).bytes;
  }
  plan.shared_bytes += kSharedAlignment;
  return plan;
}

std::string DecodePlan::ToString() const {
  return StrCat("decode: ", row_blocks, " row blocks of ", warpgroups, " tiles x ", splits,
                " splits, ", token_tile, " tokens, ", stages, " stages, ", shared_bytes,
                " B shared, ", lorc_tiles, " LoRC tiles x ", lorc_pieces, " pieces");
}

}  // namespace nibble::w4a8
