#include "quant/kernels/cuda/w4a8/plan.h"

#include <gtest/gtest.h>

#include <string>
#include <tuple>

namespace nibble::w4a8 {
namespace {

LinearShape Shape(int64_t tokens, int64_t rows, int64_t cols) {
  return {.tokens = tokens, .row_tiles = CeilDiv(rows, kTileRows), .cols = cols};
}

LinearShape Corrected(LinearShape shape, int segments, int rank) {
  shape.ranks = segments * rank;
  shape.max_rank = rank;
  return shape;
}

TEST(PlanDecode, KIsCutByTheShapeAndNeverByTheTokens) {
  struct Case {
    int64_t rows, cols;
    int parts;
  };
  for (const Case& c :
       {Case{8192, 8192, 4}, Case{12288, 4096, 2}, Case{4096, 4096, 8}, Case{22016, 4096, 1},
        Case{4096, 11008, 8}, Case{1280, 8192, 16}, Case{576, 576, 4}, Case{64, 128, 4}}) {
    for (int64_t tokens = 1; tokens <= kDecodeTokens; ++tokens) {
      const DecodePlan plan = PlanDecode(Shape(tokens, c.rows, c.cols));
      EXPECT_EQ(plan.parts(), c.parts) << c.rows << " x " << c.cols << ", " << tokens << " tokens";
      EXPECT_GE(plan.token_tile, tokens);
      EXPECT_LE(plan.warpgroups(), kMaxWarpgroups);
    }
  }
}

TEST(PlanDecode, TwoBlocksShareAMultiprocessorUnlessTheirRingsWouldBeShort) {
  for (const int64_t tokens : {1, 9, 17, 33}) {
    for (const int rank : {0, 16, 64}) {
      LinearShape shape = Shape(tokens, 8192, 8192);
      shape.ranks = shape.max_rank = rank;
      const DecodePlan plan = PlanDecode(shape);
      const int blocks = tokens == 33 ? 1 : 2;  // of 64 tokens, their sums
      EXPECT_LE(blocks * (plan.shared_bytes + 1024), Device{}.shared_bytes) << plan.ToString();
      EXPECT_GE(plan.stages, 3 * plan.k_groups) << plan.ToString();
      EXPECT_EQ(plan.lorc_blocks() % plan.splits, 0) << plan.ToString();
    }
  }
}

TEST(PlanDecode, BlocksOfAFewTokensThatOverlapHaveAMultiprocessorEach) {
  for (const int64_t rows : {64, 4096, 8192, 12288, 22016}) {
    for (const int rank : {0, 16}) {
      LinearShape shape = Shape(1, rows, 4096);
      shape.ranks = shape.max_rank = rank;
      DecodePlan alone = PlanDecode(shape);
      shape.overlaps = true;
      const DecodePlan plan = PlanDecode(shape);
      EXPECT_GT(2 * (plan.shared_bytes + 1024), Device{}.shared_bytes) << plan.ToString();
      EXPECT_LE(plan.shared_bytes, Device{}.block_shared_bytes) << plan.ToString();
      alone.shared_bytes = plan.shared_bytes;
      EXPECT_EQ(plan.ToString(), alone.ToString());
    }
  }
  // More blocks than multiprocessors, by weights alone or with LoRC's.
  for (LinearShape many : {Shape(1, 57344, 8192), Corrected(Shape(1, 12288, 4096), 3, 32)}) {
    const std::string alone = PlanDecode(many).ToString();
    many.overlaps = true;
    EXPECT_EQ(PlanDecode(many).ToString(), alone);
  }
}

TEST(PlanDecode, EveryPlanIsWithinTheKernelsLimits) {
  for (const Kind kind : {Kind::kFolded, Kind::kScaled4, Kind::kScaled8}) {
    for (const int group : {16, 32, 64, 128, kWholeRow}) {
      for (const int rank : {0, 16, 32, 64, 128}) {
        for (const int64_t rows : {64, 576, 1280, 4096, 8192, 12288, 22016, 57344}) {
          LinearShape shape = Corrected(Shape(1, rows, 4096), 1, rank);
          shape.kind = kind;
          shape.group_size = group;
          const DecodePlan first = PlanDecode(shape);
          for (const int64_t tokens : {1, 9, 17, 33}) {
            shape.tokens = tokens;
            const DecodePlan plan = PlanDecode(shape);
            SCOPED_TRACE(plan.ToString());
            EXPECT_LE(plan.shared_bytes + 16, Device{}.block_shared_bytes);
            EXPECT_GE(plan.stages, (kind == Kind::kFolded ? 2 : 1) * plan.k_groups);
            EXPECT_EQ(plan.lorc_blocks() % plan.splits, 0);
            EXPECT_EQ(plan.parts(), first.parts());
            EXPECT_EQ(plan.lorc_pieces, first.lorc_pieces);
          }
        }
      }
    }
  }
}

// Warpgroups are apart by up to a slice, and a stage is always of the same part.
TEST(PlanDecode, TheRingHoldsTwoSlicesOfEveryPart) {
  for (const int64_t rows : {64, 4096, 8192, 12288, 22016}) {
    for (const int64_t cols : {64, 128, 300, 4096, 11008}) {
      for (const int64_t tokens : {1, 16, 32, 64}) {
        for (const int rank : {0, 16, 64}) {
          LinearShape shape = Shape(tokens, rows, cols);
          shape.ranks = shape.max_rank = rank;
          const DecodePlan plan = PlanDecode(shape);
          const int64_t slices = CeilDiv(CeilDiv(cols, kSliceCols), plan.parts());
          EXPECT_EQ(plan.stages % plan.k_groups, 0) << plan.ToString();
          EXPECT_GE(plan.stages, plan.k_groups * std::min<int64_t>(slices, 2)) << plan.ToString();
        }
      }
    }
  }
}

TEST(PlanDecode, NoMoreStagesThanSlices) {
  EXPECT_EQ(PlanDecode(Shape(1, 4096, 4096)).stages, 16);  // 4 in each of 4 parts
  EXPECT_EQ(PlanDecode(Shape(64, 4096, 1024)).stages, 4);
  EXPECT_EQ(PlanDecode(Shape(1, 64, 100)).stages, 4);  // one part has a slice
}

TEST(PlanDecode, SharedMemoryHoldsWhatFollowsTheMainLoopAndALorcSlice) {
  for (const int64_t tokens : {1, 64}) {
    for (const int rank : {0, 16}) {
      LinearShape shape = Shape(tokens, 64, 100);
      shape.ranks = shape.max_rank = rank;
      const DecodePlan plan = PlanDecode(shape);
      const DecodeShared shared = DecodeSharedMemory(plan, shape);
      EXPECT_EQ(shared.staging, plan.warpgroups() * plan.token_tile / 8 * kOctetBytes);
      EXPECT_GE(shared.received - shared.staging, plan.warpgroups() * plan.token_tile * 64 * 2);
      EXPECT_EQ(shared.factor - shared.received,
                (plan.splits - 1) * plan.tiles * plan.owned_octets() * kOctetBytes);
      EXPECT_GE(shared.factor - shared.codes, rank == 0 ? 0 : kLorcSliceBytes);
      EXPECT_EQ(shared.codes % kSharedAlignment, 0);
      EXPECT_EQ(shared.barriers % 8, 0);
    }
  }
}

// Raced on an H200.
TEST(PlanDecode, WideBlocksThatLeaveNoMultiprocessorIdle) {
  const auto division = [](const LinearShape& shape) {
    const DecodePlan plan = PlanDecode(shape);
    return std::tuple(plan.tiles, plan.k_groups, plan.splits);
  };
  EXPECT_EQ(division(Shape(64, 8192, 8192)), std::tuple(2, 2, 2));
  EXPECT_EQ(division(Shape(1, 12288, 4096)), std::tuple(3, 1, 2));
  EXPECT_EQ(division(Shape(64, 22016, 4096)), std::tuple(3, 1, 1));
  EXPECT_EQ(division(Shape(64, 28672, 4096)), std::tuple(4, 1, 1));
  EXPECT_EQ(division(Shape(1, 4096, 4096)), std::tuple(1, 4, 2));
}

// Else some blocks of weights would wait for LoRC's to end.
TEST(PlanDecode, LorcRunsBesideTheWeightsBlocks) {
  const int multiprocessors = Device{}.multiprocessors;
  for (const auto& [shape, tiles, pieces] :
       {std::tuple{Corrected(Shape(64, 8192, 8192), 1, 16), 2, 4},
        std::tuple{Corrected(Shape(64, 12288, 4096), 3, 16), 3, 2},
        std::tuple{Corrected(Shape(64, 22016, 4096), 2, 16), 3, 8},
        std::tuple{Corrected(Shape(64, 4096, 4096), 1, 16), 1, 4},
        std::tuple{Corrected(Shape(64, 1280, 8192), 1, 16), 1, 8}}) {
    const DecodePlan plan = PlanDecode(shape);
    EXPECT_EQ(plan.tiles, tiles) << plan.ToString();
    EXPECT_EQ(plan.lorc_pieces, pieces) << plan.ToString();
    EXPECT_LE(plan.blocks(), multiprocessors) << plan.ToString();
  }
  // As many as there may be, where nothing helps, and where the blocks of two row tiles alone have
  // room for the factors.
  EXPECT_EQ(PlanDecode(Corrected(Shape(64, 8448, 4096), 1, 16)).lorc_pieces, kMaxLorcPieces);
  EXPECT_EQ(PlanDecode(Corrected(Shape(64, 12288, 4096), 3, 32)).lorc_pieces, kMaxLorcPieces);
  EXPECT_EQ(PlanDecode(Corrected(Shape(64, 22016, 4096), 1, 64)).tiles, 2);
}

TEST(PlanDecode, LorcIsCutByTheShapeAndNeverByTheTokens) {
  for (const int64_t rows : {64, 1280, 4096, 8192, 8448, 12288, 22016}) {
    for (const int rank : {16, 32, 64, 128}) {
      const DecodePlan first = PlanDecode(Corrected(Shape(1, rows, 4096), 1, rank));
      for (int64_t tokens = 1; tokens <= kDecodeTokens; ++tokens) {
        const DecodePlan plan = PlanDecode(Corrected(Shape(tokens, rows, 4096), 1, rank));
        EXPECT_EQ(plan.parts(), first.parts()) << plan.ToString();
        EXPECT_EQ(plan.lorc_pieces, first.lorc_pieces) << plan.ToString();
        EXPECT_EQ(plan.lorc_blocks() % plan.splits, 0) << plan.ToString();
      }
    }
  }
}

TEST(PlanDecode, PrintsItself) {
  EXPECT_EQ(PlanDecode(Shape(1, 128, 128)).ToString(),
            "decode: 2 row blocks of 1 tiles x 4 parts x 1 splits, 8 tokens, 4 stages, 22256 B "
            "shared, 0 LoRC tiles x 0 pieces");
}

TEST(PlanDecode, TheTokenTileIsTheLeastThatHoldsTheTokens) {
  for (const auto& [tokens, folded, scaled] :
       {std::tuple{1, 8, 16}, std::tuple{8, 8, 16}, std::tuple{9, 16, 16}, std::tuple{16, 16, 16},
        std::tuple{17, 32, 64}, std::tuple{32, 32, 64}, std::tuple{33, 64, 64},
        std::tuple{64, 64, 64}}) {
    LinearShape shape = Shape(tokens, 4096, 4096);
    EXPECT_EQ(PlanDecode(shape).token_tile, folded) << tokens;
    shape.kind = Kind::kScaled4;
    EXPECT_EQ(PlanDecode(shape).token_tile, scaled) << tokens;
  }
}

TEST(ChooseRegime, ByTokens) {
  EXPECT_EQ(ChooseRegime(1), Regime::kDecode);
  EXPECT_EQ(ChooseRegime(64), Regime::kDecode);
  EXPECT_EQ(ChooseRegime(65), Regime::kMedium);
  EXPECT_EQ(ChooseRegime(256), Regime::kMedium);
  EXPECT_EQ(ChooseRegime(257), Regime::kPrefill);
}

}  // namespace
}  // namespace nibble::w4a8
