// The number formats of nibble, their scales and their packing, in one place.
//
// Floating-point codes are sign | exponent | mantissa from the high bit down; encoding rounds to
// nearest, ties to even mantissa, keeps subnormals and saturates at the largest finite value.
//
//   format  bits  bias  values                                        max
//   E2M1    4     1     0 .5 1 1.5 2 3 4 6 and negatives              6
//   E3M0    4     3     0 2^-2 2^-1 1 2 4 8 16 and negatives          16     ties go up, except
//                                                                            0.125 -> 0
//   E4M3    8     7     OCP e4m3fn: no infinities, 0x7f/0xff are NaN  448
//   E5M2    8     15    IEEE-like                                     57344
//   INT4    4     -     symmetric -7..7 (two's complement), asymmetric 0..15
//   INT8    8     -     symmetric -127..127 (two's complement), asymmetric 0..255
//
// Weights carry one scale per group of `group_size` input columns of one output row; the last
// group may be short. The true value of a weight is
//   symmetric   w = value(code) * S
//   asymmetric  w = (code - zero) * S
// Scale constraints (ZeroQuant-FP, arXiv 2307.09782, section 3):
//   NONE  S is any float, at least 1e-10
//   M1    S = 2^e,           stored as e (int8), within 11 of the row's largest e
//   M2    S = S_row * 2^-k,  stored as S_row (float) and k (4 bits, 0..11)
// With E2M1 codes, value * 2^(6-k) is an exact E4M3 number for every k in 0..14 ("the exponent
// fold"), which is what the Hopper kernels multiply.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace nibble {

enum class Format : uint8_t { kE2M1, kE3M0, kE4M3, kE5M2, kInt4, kInt8 };

std::string_view FormatName(Format format);  // "e2m1", ...
absl::StatusOr<Format> ParseFormat(std::string_view name);

int FormatBits(Format format);   // 4 or 8
float FormatMax(Format format);  // largest symmetric magnitude: 6, 16, 448, 57344, 7, 127
bool IsInteger(Format format);

// The code of the representable value nearest to x (symmetric for integers). x must be finite.
uint8_t EncodeValue(Format format, float x);
// The value of a code; only the low FormatBits(format) bits are read.
float DecodeValue(Format format, uint8_t code);
// DecodeValue(EncodeValue(x)), without the detour.
float RoundToFormat(Format format, float x);

enum class ScaleConstraint : uint8_t { kNone, kM1, kM2 };
enum class M2Rounding : uint8_t { kCeil, kFloor, kMse };

std::string_view ScaleConstraintName(ScaleConstraint constraint);  // "none" "m1" "m2"
absl::StatusOr<ScaleConstraint> ParseScaleConstraint(std::string_view name);
std::string_view M2RoundingName(M2Rounding rounding);  // "ceil" "floor" "mse"
absl::StatusOr<M2Rounding> ParseM2Rounding(std::string_view name);

// Smallest scale, so that an all-zero group divides by something.
inline constexpr float kMinScale = 1e-10f;
// Largest exponent offset of a group below its row's scale.
inline constexpr int kMaxExponentOffset = 11;
// Group sizes that a job may ask for; -1 is the whole row.
inline constexpr int kWholeRow = -1;

// How a weight matrix is stored.
struct WeightSpec {
  Format format = Format::kE2M1;
  bool asymmetric = false;  // integers under NONE only
  int group_size = 256;     // input columns per scale; -1: whole row
  ScaleConstraint constraint = ScaleConstraint::kM2;
  M2Rounding rounding = M2Rounding::kMse;  // read when constraint is kM2
  // INVALID_ARGUMENT "<field>: found <found>, expected <expected>".
  absl::Status Validate() const;
};

// INVALID_ARGUMENT unless it is one of 16, 32, ... 1024 or kWholeRow.
absl::Status CheckGroupSize(int group_size);
int64_t GroupCount(int64_t cols, int group_size);  // ceil(cols / group)
int64_t GroupWidth(int64_t cols, int group_size);  // columns of a full group

// One group's scale and zero point, before any constraint.
struct GroupScale {
  float scale = 0;
  uint8_t zero = 0;
};
// From the values of one group. Asymmetric: the range includes 0, zero = round(-lo / S).
GroupScale ComputeGroupScale(const WeightSpec& spec, absl::Span<const float> values);

// The constrained scales of one row.
struct RowScales {
  std::vector<float> scale;   // [groups] the scales to quantize with
  std::vector<uint8_t> zero;  // [groups] zero points, empty when symmetric
  float row_scale = 0;        // M2: S_row
  std::vector<int> exponent;  // M1: log2 S; M2: k; empty for NONE
  int clamped = 0;            // groups whose exponent met the clamp, zero groups counted
};

// Scales of a whole row from its values (RTN, act-order GPTQ).
// M2's `mse` picks, of ceil and floor, the one with less squared error over the group.
RowScales ComputeRowScales(const WeightSpec& spec, absl::Span<const float> row);

// M2, natural-order GPTQ: the exponent k of one group from its updated values, given the row's
// scale from the original weights; k < 0 clamps to 0 and k > 11 to 11, counted in *clamped.
int ConstrainM2(const WeightSpec& spec, absl::Span<const float> values, float row_scale,
                int* clamped);

// Natural-order GPTQ: replaces group `group` of a row whose scales came from the original weights
// (ComputeRowScales) by that of its updated values, S_row kept. Groups come in rising order. M1:
// the exponent stays within 11 of every other in the row: at most 11 below the largest of the
// groups replaced so far and of the original ones still ahead, at most 11 above the smallest
// replaced.
void UpdateGroupScale(const WeightSpec& spec, absl::Span<const float> values, int64_t group,
                      RowScales& row);

// One weight's code and true value under a scale.
uint8_t QuantizeWeight(const WeightSpec& spec, float w, float scale, uint8_t zero);
float DequantizeWeight(const WeightSpec& spec, uint8_t code, float scale, uint8_t zero);

// A quantized matrix [rows, cols] as the artifact stores it.
struct QuantizedMatrix {
  WeightSpec spec;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<uint8_t> codes;    // [rows, ceil(cols * bits / 8)], low nibble first
  std::vector<float> scale;      // NONE: [rows, groups]
  std::vector<int8_t> exponent;  // M1:   [rows, groups]
  std::vector<float> row_scale;  // M2:   [rows]
  std::vector<uint8_t> k;        // M2:   [rows, ceil(groups / 2)], low nibble first
  std::vector<uint8_t> zero;     // asymmetric: [rows, groups]

  int64_t groups() const { return GroupCount(cols, spec.group_size); }
  // Shapes and ranges (k <= 11, finite positive scales, no NaN codes); `name` is for the message.
  absl::Status Validate(std::string_view name) const;
  // The scale of one group.
  float GroupScaleAt(int64_t row, int64_t group) const;
  // M2's k of one group: its scale is the row's times 2^-k.
  int GroupOffsetAt(int64_t row, int64_t group) const;
  // True values of one row into out[cols].
  void DequantizeRow(int64_t row, absl::Span<float> out) const;
  // Bits per weight, scales and zero points included.
  double BitsPerWeight() const;
};

// Bytes of all buffers of such a matrix.
int64_t StoredBytes(const WeightSpec& spec, int64_t rows, int64_t cols);
// An empty matrix with every buffer sized for `spec`.
QuantizedMatrix MakeQuantizedMatrix(const WeightSpec& spec, int64_t rows, int64_t cols);
// Stores one row: codes[cols] one per byte, and its scales.
void StoreRow(QuantizedMatrix& matrix, int64_t row, absl::Span<const uint8_t> codes,
              const RowScales& scales);

// Packing of one code per byte into FormatBits bits, low nibble first, rows padded to a byte.
std::vector<uint8_t> PackCodes(Format format, absl::Span<const uint8_t> codes);
std::vector<uint8_t> UnpackCodes(Format format, absl::Span<const uint8_t> packed, int64_t count);

// INVALID_ARGUMENT with `name` and the index when a value is NaN or infinite.
absl::Status CheckFinite(std::string_view name, absl::Span<const float> values);

// Activations: one scale per token over the whole row.
struct ActivationSpec {
  Format format = Format::kE4M3;  // E4M3, E5M2 or INT8
  bool asymmetric = false;        // INT8 only
  absl::Status Validate() const;
};
// Rounds one token's row [cols] to the format in place: value(encode(x * (max / amax))) * S with
// S = amax / max; asymmetric over the range including 0: S = range / 255, zero = round(-lo / S). A
// row of zeros stays zero; a row with a NaN or an infinity becomes NaNs.
void RoundActivationRow(const ActivationSpec& spec, absl::Span<float> row);
// The same, but leaves x / S and returns S: numbers of the format (asymmetric: code - zero), each
// of which bf16 holds exactly. Of a row that becomes NaNs every product with S is NaN.
float RoundActivationSteps(const ActivationSpec& spec, absl::Span<float> row);

// The scale and the code of 0 (asymmetric; else 0) by which RoundActivationRow rounds a finite row.
struct ActivationScale {
  float scale = 0;
  int zero = 0;
};
ActivationScale ComputeActivationScale(const ActivationSpec& spec, absl::Span<const float> row);

// The exponent fold: the E4M3 byte whose value is value(code) * 2^(bias - k), bias 6 for E2M1 and
// 4 for E3M0. Exact for E2M1 with k in 0..14 and for E3M0 with k in 0..11.
uint8_t FoldExponent(Format format, uint8_t code, int k);

}  // namespace nibble
