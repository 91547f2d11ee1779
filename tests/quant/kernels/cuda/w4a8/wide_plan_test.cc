#include "quant/kernels/cuda/w4a8/wide_plan.h"

#include <gtest/gtest.h>

#include <set>
#include <tuple>
#include <utility>

namespace nibble::w4a8 {
namespace {

LinearShape Shape(int64_t tokens, int64_t rows, int64_t cols) {
  return {.tokens = tokens, .row_tiles = CeilDiv(rows, kTileRows), .cols = cols};
}

TEST(PlanWide, FewTilesGetABlockEach) {
  EXPECT_EQ(PlanWide(Shape(128, 8192, 8192), true).row_tiles, 1);
  EXPECT_EQ(PlanWide(Shape(128, 8192, 8192), true).blocks(), 128);
  EXPECT_EQ(PlanWide(Shape(256, 8192, 8192), true).row_tiles, 2);
  EXPECT_EQ(PlanWide(Shape(256, 8192, 8192), true).blocks(), 128);
  EXPECT_EQ(PlanWide(Shape(256, 8192, 8192), false).row_tiles, 1);
  EXPECT_EQ(PlanWide(Shape(65, 40, 100), true).cluster, 1);
}

TEST(PlanWide, ManyTokensAreWorthExpandingOnce) {
  EXPECT_EQ(PlanWide(Shape(kExpandedTokens - 1, 4096, 4096), true).source, WideSource::kFolded);
  EXPECT_EQ(PlanWide(Shape(kExpandedTokens, 4096, 4096), true).source, WideSource::kExpanded);
}

TEST(PlanWide, SharedMemoryFitsWithStagesToSpare) {
  for (const int64_t tokens : {65, 128, 256, 512, 2048, 16384}) {
    for (const bool promoted : {true, false}) {
      for (const int group_size : {16, 128, kWholeRow}) {
        LinearShape shape = Shape(tokens, 8192, 8192);
        shape.group_size = group_size;
        const WidePlan plan = PlanWide(shape, promoted);
        EXPECT_LE(plan.shared_bytes, Device{}.block_shared_bytes) << plan.ToString();
        EXPECT_GE(plan.stages, 4) << plan.ToString();
        EXPECT_LE(plan.blocks(), Device{}.multiprocessors) << plan.ToString();
        const WideShared shared = WideSharedMemory(plan, shape);
        EXPECT_EQ(shared.weights % 16, 0);
        EXPECT_EQ(shared.staging % 16, 0);
        EXPECT_EQ(shared.barriers % 8, 0);
      }
    }
  }
}

TEST(PlanWide, TheWalkMeetsEveryTileOnce) {
  for (const auto& [row_groups, token_tiles, raster] :
       {std::tuple{5, 7, 3}, std::tuple{1, 1, 1}, std::tuple{32, 16, 16}, std::tuple{3, 9, 4}}) {
    std::set<std::pair<int, int>> tiles;
    for (int i = 0; i < row_groups * token_tiles; ++i) {
      const WideTile tile = WideTileAt(i, row_groups, token_tiles, raster);
      EXPECT_LT(tile.row_group, row_groups);
      EXPECT_LT(tile.token_tile, token_tiles);
      tiles.emplace(tile.row_group, tile.token_tile);
    }
    EXPECT_EQ(static_cast<int>(tiles.size()), row_groups * token_tiles);
  }
}

TEST(WideWorkspace, HoldsTheExpandedWeightsAndT) {
  LinearShape shape = Shape(2000, 100, 300);
  shape.ranks = 32;
  const WideWorkspace folded = WideWorkspaceMemory(shape, WideSource::kFolded);
  EXPECT_EQ(folded.t, kWorkspaceCounterBytes);
  EXPECT_EQ(folded.bytes - folded.t, 2048 * 32 * 2);
  const WideWorkspace expanded = WideWorkspaceMemory(shape, WideSource::kExpanded);
  EXPECT_EQ(expanded.t - expanded.expanded, 128 * 384);
}

TEST(PlanWide, PrintsItself) {
  EXPECT_EQ(PlanWide(Shape(300, 1000, 100), true).ToString(),
            "wide folded promoted: 8 row groups of 2 blocks of 1 tiles x 3 tiles of 128 tokens in "
            "bands of 3, 24 clusters, 9 stages, 219696 B shared");
}

}  // namespace
}  // namespace nibble::w4a8
