#include <algorithm>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/kernels/cuda/launch.h"
#include "quant/kernels/cuda/w4a8/decode.h"
#include "quant/kernels/cuda/w4a8/linear.h"
#include "quant/kernels/cuda/w4a8/wide.h"

namespace nibble::w4a8 {
namespace {

constexpr int64_t kMaxTokens = 16384;

absl::Status CheckCall(const PreparedLinear& weights, const LinearCall& call) {
  if (call.tokens < 1 || call.tokens > kMaxTokens) {
    return absl::InvalidArgumentError(
        StrCat("tokens: found ", call.tokens, ", expected 1..", kMaxTokens));
  }
  if (call.x_pitch % 16 != 0 || call.x_pitch < weights.cols) {
    return absl::InvalidArgumentError(StrCat(
        "x_pitch: found ", call.x_pitch, ", expected a multiple of 16 of at least ", weights.cols));
  }
  if ((call.y == nullptr) == (call.y_f32 == nullptr)) {
    return absl::InvalidArgumentError(
        StrCat("y, y_f32: found ", call.y == nullptr ? "none" : "both", ", expected one of them"));
  }
  NIBBLE_RETURN_IF_ERROR(CheckPointer("weights", weights.slices, 256));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("x", call.x, 16));
  NIBBLE_RETURN_IF_ERROR(CheckPointer("x_scale", call.x_scale, 4));
  if (WorkspaceBytes(weights, call.tokens) > 0) {
    NIBBLE_RETURN_IF_ERROR(CheckPointer("workspace", call.workspace, 256));
  }
  if (call.y != nullptr) return CheckPointer("y", call.y, 16);
  return CheckPointer("y_f32", call.y_f32, 16);
}

// `tokens` of the call's from `first` on.
LinearCall Part(const PreparedLinear& weights, const LinearCall& call, int64_t first,
                int64_t tokens) {
  LinearCall part = call;
  part.x += first * call.x_pitch;
  part.x_scale += first;
  part.tokens = tokens;
  if (call.y != nullptr) part.y += first * weights.rows;
  if (call.y_f32 != nullptr) part.y_f32 += first * weights.rows;
  return part;
}

// What the fold can't take runs as decode, 64 tokens at a time.
bool IsWide(const PreparedLinear& weights, int64_t tokens) {
  return tokens > kDecodeTokens && weights.kind == Kind::kFolded;
}

}  // namespace

size_t WorkspaceBytes(const PreparedLinear& weights, int64_t tokens) {
  const size_t decode = DecodeWorkspaceBytes(weights, std::min<int64_t>(tokens, kDecodeTokens));
  if (!IsWide(weights, tokens)) return decode;
  return std::max(decode, WideWorkspaceBytes(weights, tokens));
}

absl::Status Launch(const PreparedLinear& weights, const LinearCall& call, cudaStream_t stream) {
  NIBBLE_RETURN_IF_ERROR(CheckCall(weights, call));
  if (IsWide(weights, call.tokens)) return LaunchWide(weights, call, stream);
  for (int64_t first = 0; first < call.tokens; first += kDecodeTokens) {
    const LinearCall part =
        Part(weights, call, first, std::min<int64_t>(kDecodeTokens, call.tokens - first));
    LinearShape shape = ShapeOf(weights, part.tokens);
    shape.overlaps = part.overlap_previous;
    NIBBLE_RETURN_IF_ERROR(LaunchDecode(PlanDecode(shape), weights, part, stream));
  }
  return absl::OkStatus();
}

}  // namespace nibble::w4a8
