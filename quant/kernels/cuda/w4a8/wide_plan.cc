#include "quant/kernels/cuda/w4a8/wide_plan.h"

#include <algorithm>

#include "quant/base/strings.h"

namespace nibble::w4a8 {
namespace {

int WeightBytes(const WidePlan& plan, const LinearShape& shape) {
  return plan.source == WideSource::kExpanded ? ExpandedSliceBytes()
                                              : SliceBytes(shape.kind, shape.group_size);
}

// Blocks with one row tile read x twice as often but are twice as many: for few tiles only.
int RowTiles(const LinearShape& shape, int64_t token_tiles, const Device& device) {
  return shape.row_tiles * token_tiles <= device.multiprocessors ? 1 : 2;
}

}  // namespace

WideShared WideSharedMemory(const WidePlan& plan, const LinearShape& shape) {
  WideShared shared;
  shared.weights = plan.stages * plan.token_tile * kSliceCols;
  shared.staging = shared.weights + plan.stages * plan.row_tiles * WeightBytes(plan, shape);
  shared.small = shared.staging + StagingBytes(plan.row_tiles, plan.token_tile);
  shared.barriers = shared.small + kFoldTableBytes + 2 * plan.token_tile * 4;
  shared.bytes = shared.barriers + 2 * plan.stages * 8;
  return shared;
}

WidePlan PlanWide(const LinearShape& shape, bool promoted, const Device& device,
                  const WideChoice& choice) {
  WidePlan plan;
  plan.promoted = promoted || shape.tokens <= 128;
  const bool expanded =
      choice.expanded == 0 ? plan.promoted && shape.tokens >= kExpandedTokens : choice.expanded > 0;
  plan.source = expanded ? WideSource::kExpanded : WideSource::kFolded;
  plan.token_tile = plan.promoted ? 128 : 256;
  plan.token_tiles = static_cast<int>(CeilDiv(shape.tokens, plan.token_tile));
  plan.row_tiles = expanded                ? 2
                   : choice.row_tiles != 0 ? choice.row_tiles
                                           : RowTiles(shape, plan.token_tiles, device);
  const int64_t blocks = CeilDiv(shape.row_tiles, plan.row_tiles);
  plan.cluster = blocks == 1 ? 1 : choice.cluster != 0 ? choice.cluster : 2;
  plan.row_groups = static_cast<int>(CeilDiv(blocks, plan.cluster));
  plan.raster = std::min(plan.token_tiles, 2048 / plan.token_tile);
  plan.clusters = static_cast<int>(std::min(plan.tiles(), device.multiprocessors / plan.cluster));
  const int budget = device.block_shared_bytes - kSharedAlignment;
  do {
    ++plan.stages;
    plan.shared_bytes = WideSharedMemory(plan, shape).bytes;
  } while (plan.shared_bytes <= budget);
  --plan.stages;
  plan.shared_bytes = WideSharedMemory(plan, shape).bytes + kSharedAlignment;
  return plan;
}

WideWorkspace WideWorkspaceMemory(const LinearShape& shape, WideSource source) {
  WideWorkspace workspace;
  workspace.expanded = kWorkspaceCounterBytes;
  const int64_t expanded =
      source == WideSource::kExpanded
          ? shape.row_tiles * CeilDiv(shape.cols, kSliceCols) * ExpandedSliceBytes()
          : 0;
  workspace.t = workspace.expanded + expanded;
  workspace.bytes = workspace.t + RoundUp(shape.tokens, kWideTokenPadding) * shape.ranks * 2;
  return workspace;
}

std::string WidePlan::ToString() const {
  return StrCat("wide ", source == WideSource::kExpanded ? "expanded" : "folded",
                promoted ? " promoted: " : " fast: ", row_groups, " row groups of ", cluster,
                " blocks of ", row_tiles, " tiles x ", token_tiles, " tiles of ", token_tile,
                " tokens in bands of ", raster, ", ", clusters, " clusters, ", stages, " stages, ",
                shared_bytes, " B shared");
}

}  // namespace nibble::w4a8
