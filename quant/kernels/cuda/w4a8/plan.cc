#include "quant/kernels/cuda/w4a8/plan.h"

#include <algorithm>

#include "quant/base/strings.h"

namespace nibble::w4a8 {
namespace {

// A block of more than two row tiles has room for LoRC's factors of so many ranks each.
constexpr int kRoomyRank = 32;

// Slices of a part that the ring is to hold: one multiplied, one read by the tensor cores still
// (ConsumePipelined) and one to come.
constexpr int kLeastPartStages = 3;

constexpr int kStaticBytes = 16;  // of a decode block: LoRC's flag

// Of each of `blocks` that share a multiprocessor: without the kilobyte that the system keeps of
// it.
int SharedBytes(const Device& device, int blocks) {
  return std::min(device.shared_bytes / blocks - 1024, device.block_shared_bytes) - kStaticBytes;
}

int TokenTile(int64_t tokens, Kind kind) {
  if (kind != Kind::kFolded) return tokens <= 16 ? 16 : 64;
  if (tokens <= 8) return 8;
  if (tokens <= 16) return 16;
  return tokens <= 32 ? 32 : 64;
}

// Blocks that share K of the same row tiles: as many as idle multiprocessors allow, LoRC's blocks
// left a place.
int Splits(const LinearShape& shape, const Device& device, int tiles) {
  const int64_t slices = CeilDiv(shape.cols, kSliceCols);
  const int64_t row_blocks = CeilDiv(shape.row_tiles, tiles);
  const int64_t places = device.multiprocessors - LorcTiles(shape.ranks);
  int splits = 1;
  const int k_groups = kMaxWarpgroups / tiles;
  while (splits < 4 && 2 * splits * row_blocks <= places && 2 * splits * k_groups <= slices) {
    splits *= 2;
  }
  return splits;
}

// Row tiles, as whole columns of K, that the busiest multiprocessor reads.
double BusiestShare(const LinearShape& shape, const Device& device, int tiles) {
  const int splits = Splits(shape, device, tiles);
  const int64_t blocks = CeilDiv(shape.row_tiles, tiles) * splits + LorcTiles(shape.ranks);
  return static_cast<double>(CeilDiv(blocks, device.multiprocessors) * tiles) / splits;
}

// Pieces of a LoRC tile: as many as run beside `blocks` blocks at once, whole clusters of `splits`.
// Where more blocks would wait for a multiprocessor, those of weights would end later.
int LorcPieces(const LinearShape& shape, const Device& device, int64_t blocks, int splits) {
  const int lorc_tiles = LorcTiles(shape.ranks);
  if (lorc_tiles == 0) return 0;
  for (int pieces = kMaxLorcPieces; pieces > 0; pieces /= 2) {
    const int lorc_blocks = lorc_tiles * pieces;
    if (lorc_blocks % splits == 0 && blocks + lorc_blocks <= device.multiprocessors) return pieces;
  }
  return kMaxLorcPieces;
}

// Whether each block is to have a multiprocessor to itself: those that start while the kernel
// before still runs would else crowd where it leaves room, some multiprocessors idle beside them.
// Its ring stays that of two: a longer one, filled while small kernels before it wait for memory,
// makes them wait longer. Measured with few tokens, whose blocks wait longest (step_bench).
bool KeepsBlocksApart(const LinearShape& shape, const Device& device, const DecodePlan& plan) {
  const int64_t lorc_blocks = int64_t{LorcTiles(shape.ranks)} * plan.lorc_pieces;
  const int64_t blocks = CeilDiv(shape.row_tiles, plan.tiles) * plan.splits + lorc_blocks;
  return shape.overlaps && plan.token_tile <= 16 && blocks <= device.multiprocessors;
}

// By races on an H200 (plan_race): blocks of several row tiles read fastest, for their slices lie
// together and share x, if they leave no multiprocessor idle; and blocks of all the warpgroups
// there may be. The parts of K, and LoRC's pieces of it, depend on the weights' shape alone.
void Divide(const LinearShape& shape, const Device& device, DecodePlan& plan) {
  const bool roomy = shape.kind == Kind::kFolded && shape.max_rank <= kRoomyRank;
  plan.tiles = 2 * shape.row_tiles > device.multiprocessors ? 2 : 1;
  if (roomy && shape.row_tiles > device.multiprocessors) {
    plan.tiles = 4;
    for (const int tiles : {3, 2}) {
      if (BusiestShare(shape, device, tiles) < BusiestShare(shape, device, plan.tiles)) {
        plan.tiles = tiles;
      }
    }
  }
  plan.k_groups = kMaxWarpgroups / plan.tiles;
  plan.splits = Splits(shape, device, plan.tiles);
  plan.lorc_pieces =
      LorcPieces(shape, device, CeilDiv(shape.row_tiles, plan.tiles) * plan.splits, plan.splits);
}

// The most stages up to `most` whose shared memory is within `budget`; a slice of every part at
// least.
int StagesWithin(int budget, const LinearShape& shape, int most, DecodePlan plan) {
  // A stage always holds slices of the same part: a warpgroup that is ahead of another must not
  // take the barrier of the other's slice for that of its own.
  plan.stages = plan.k_groups;
  while (plan.stages + plan.k_groups <= most) {
    plan.stages += plan.k_groups;
    if (DecodeSharedMemory(plan, shape).bytes > budget) return plan.stages - plan.k_groups;
  }
  return plan.stages;
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
  const int part_bytes = plan.warpgroups() * plan.token_tile / 8 * kOctetBytes;
  shared.staging = part_bytes;
  const int staging_bytes = plan.warpgroups() * plan.token_tile * kTileRows * 2;
  shared.received = static_cast<int>(
      RoundUp(std::max(shared.codes + code_bytes, part_bytes + staging_bytes), 16));
  shared.factor =
      shared.received + (plan.splits - 1) * plan.tiles * plan.owned_octets() * kOctetBytes;
  const int factor_bytes = static_cast<int>(LorcAUnits(shape.max_rank)) * 16;
  shared.t = shared.factor + plan.tiles * factor_bytes;
  const int t_bytes = shape.max_rank == 0 ? 0 : plan.token_tile * LorcPitch(shape.max_rank);
  shared.small = shared.t + plan.tiles * t_bytes;
  shared.barriers =
      shared.small + kFoldTableBytes + plan.token_tile * 4 + plan.tiles * kTileRows * (4 + 2);
  shared.bytes = shared.barriers + (2 * plan.stages + 2) * 8;
  return shared;
}

void CompletePlan(const LinearShape& shape, const Device& device, int blocks, int max_stages,
                  DecodePlan& plan) {
  plan.row_blocks = static_cast<int>(CeilDiv(shape.row_tiles, plan.tiles));
  plan.lorc_tiles = LorcTiles(shape.ranks);
  const int64_t part = CeilDiv(CeilDiv(shape.cols, kSliceCols), plan.parts());
  const int most = static_cast<int>(std::min<int64_t>(max_stages, part * plan.k_groups));
  const int least = std::min(most, kLeastPartStages * plan.k_groups);
  for (;; --blocks) {
    plan.stages = StagesWithin(SharedBytes(device, blocks) - kSharedAlignment, shape, most, plan);
    if (plan.stages >= least || blocks == 1) break;
  }
  plan.shared_bytes = DecodeSharedMemory(plan, shape).bytes + kSharedAlignment;
}

DecodePlan PlanDecode(const LinearShape& shape, const Device& device) {
  DecodePlan plan;
  plan.token_tile = TokenTile(shape.tokens, shape.kind);
  Divide(shape, device, plan);
  CompletePlan(shape, device, 2, 64, plan);  // longer rings are no faster (plan_race)
  if (KeepsBlocksApart(shape, device, plan)) {
    plan.shared_bytes = std::max(plan.shared_bytes, device.shared_bytes / 2);
  }
  return plan;
}

std::string DecodePlan::ToString() const {
  return StrCat("decode: ", row_blocks, " row blocks of ", tiles, " tiles x ", k_groups,
                " parts x ", splits, " splits, ", token_tile, " tokens, ", stages, " stages, ",
                shared_bytes, " B shared, ", lorc_tiles, " LoRC tiles x ", lorc_pieces, " pieces");
}

}  // namespace nibble::w4a8
