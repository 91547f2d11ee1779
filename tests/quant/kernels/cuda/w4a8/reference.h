// Inputs and references that the tests of both regimes share: the format library's true values,
// multiplied in double precision.
#pragma once

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "quant/formats/formats.h"
#include "tests/quant/kernels/cuda/w4a8/arrange.h"

namespace nibble::w4a8 {

using Random = std::mt19937;

inline WeightSpec Spec(Format format = Format::kE2M1, int group_size = 128,
                       ScaleConstraint constraint = ScaleConstraint::kM2) {
  return {format, false, group_size, constraint};
}

// Any code, and offsets up to `max_offset` below scales that are powers of two unless `any_scale`.
inline QuantizedMatrix RandomMatrix(const WeightSpec& spec, int64_t rows, int64_t cols,
                                    int max_offset, bool any_scale, Random& random) {
  QuantizedMatrix m = MakeQuantizedMatrix(spec, rows, cols);
  const bool bytes = FormatBits(spec.format) == 8;
  for (uint8_t& byte : m.codes) {
    byte = static_cast<uint8_t>(random());
    if (bytes && (byte & 0x7f) == 0x7f) byte ^= 0x40;  // no NaN
  }
  const auto offset = [&] { return static_cast<int>(random() % (max_offset + 1)); };
  const auto scale = [&] {
    return any_scale ? 0.5f + static_cast<float>(random() % 1000) / 700.f : 1.f;
  };
  for (float& row_scale : m.row_scale) row_scale = scale();
  for (float& group_scale : m.scale) group_scale = std::ldexp(scale(), -offset());
  for (uint8_t& k : m.k) k = static_cast<uint8_t>(offset() | offset() << 4);
  for (int8_t& exponent : m.exponent) exponent = static_cast<int8_t>(-offset());
  if (!bytes && cols % 2 != 0) {
    for (int64_t row = 0; row < rows; ++row) m.codes[(row + 1) * ((cols + 1) / 2) - 1] &= 15;
  }
  return m;
}

// One call's inputs on the host. x [tokens, cols] codes; x_scale [tokens].
struct Input {
  int64_t tokens;
  int64_t cols;
  std::vector<uint8_t> x;
  std::vector<float> x_scale;
};

inline Input MakeInput(int64_t tokens, int64_t cols, const std::function<float()>& value) {
  Input input{tokens, cols, std::vector<uint8_t>(tokens * cols), std::vector<float>(tokens, 1.f)};
  for (uint8_t& code : input.x) code = EncodeValue(Format::kE4M3, value());
  return input;
}

struct Output {
  std::vector<float> f32;           // [tokens, rows]
  std::vector<__nv_bfloat16> bf16;  // [tokens, rows]
};

// y[token, row] in double, LoRC and bias included; `magnitude` the sum of absolute terms.
struct Reference {
  std::vector<double> y;
  double magnitude = 0;  // the largest of sum |w x| over one output
};
inline Reference Multiply(const std::vector<HostSegment>& segments, const Input& input) {
  int64_t rows = 0;
  for (const HostSegment& segment : segments) rows += segment.weight.rows;
  Reference reference{std::vector<double>(input.tokens * rows)};
  std::vector<double> x(input.x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = DecodeValue(Format::kE4M3, input.x[i]);
  std::vector<float> weights(input.cols);
  int64_t column = 0;
  for (const HostSegment& segment : segments) {
    std::vector<double> t(input.tokens * segment.rank);
    for (int64_t i = 0; i < input.tokens * segment.rank; ++i) {
      for (int64_t col = 0; col < input.cols; ++col) {
        t[i] += x[i / segment.rank * input.cols + col] *
                segment.lorc_b[i % segment.rank * input.cols + col];
      }
    }
    for (int64_t row = 0; row < segment.weight.rows; ++row, ++column) {
      segment.weight.DequantizeRow(row, absl::MakeSpan(weights));
      for (int64_t token = 0; token < input.tokens; ++token) {
        double sum = 0;
        double magnitude = 0;
        for (int64_t col = 0; col < input.cols; ++col) {
          const double product = weights[col] * x[token * input.cols + col];
          sum += product;
          magnitude += std::fabs(product);
        }
        for (int rank = 0; rank < segment.rank; ++rank) {
          sum += segment.lorc_a[row * segment.rank + rank] * t[token * segment.rank + rank];
        }
        const double bias = segment.bias.empty() ? 0 : segment.bias[row];
        reference.y[token * rows + column] = sum * input.x_scale[token] + bias;
        reference.magnitude = std::max(reference.magnitude, magnitude);
      }
    }
  }
  return reference;
}

// What the accumulator may lose of sums, relative to their L2 norm. Hopper's is described as 13
// fraction bits: at each step of 32 columns the sum so far and the 32 products are aligned to the
// largest of them and cut off toward zero, so that each of the 33 loses less than one unit u, 2^-13
// of the largest's power of two. Losses of zero-mean sums are as random as their signs: at most
// u^2 / 3 of variance each. Losses of positive sums add up: u / 2 each in the mean. E2M1's products
// have so few bits that most lose nothing, and its promoted sums are held to 1e-3. Every token of
// `input` counts, but only a few rows of `m`. Sums start anew with each slice if `promoted`.
inline double TruncationBound(const QuantizedMatrix& m, const Input& input, bool promoted,
                              bool positive) {
  constexpr int kRowStep = 13;
  std::vector<float> weights(m.cols);
  double loss = 0;
  double norm = 0;
  for (int64_t row = 0; row < m.rows; row += kRowStep) {
    m.DequantizeRow(row, absl::MakeSpan(weights));
    for (int64_t token = 0; token < input.tokens; ++token) {
      double total = 0;
      double sum = 0;
      double variance = 0;
      double mean = 0;
      for (int64_t step = 0; step < m.cols; step += kStepCols) {
        if (promoted && step % kSliceCols == 0) sum = 0;
        double largest = std::fabs(sum);
        for (int64_t col = step; col < std::min(m.cols, step + kStepCols); ++col) {
          const double product =
              weights[col] * DecodeValue(Format::kE4M3, input.x[token * m.cols + col]);
          largest = std::max(largest, std::fabs(product));
          sum += product;
          total += product;
        }
        if (largest == 0) continue;
        const double unit = std::ldexp(1., std::ilogb(largest) - 13);
        variance += 33 * unit * unit / 3;
        mean += 33 * unit / 2;
      }
      loss += positive ? mean * mean : variance;
      norm += total * total;
    }
  }
  const double bound = std::sqrt(loss / norm) + 1e-6;  // and f32's own roundings
  return promoted && m.spec.format == Format::kE2M1 ? std::min(bound, 1e-3) : bound;
}

inline double RelativeError(const std::vector<double>& expected, const std::vector<float>& found) {
  if (expected.size() != found.size()) return std::numeric_limits<double>::infinity();
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

inline std::vector<float> ToFloats(const std::vector<__nv_bfloat16>& values) {
  std::vector<float> floats;
  for (const __nv_bfloat16 value : values) floats.push_back(__bfloat162float(value));
  return floats;
}

// Bit for bit, in f32 and rounded to bf16.
inline void ExpectExactly(const std::vector<double>& expected, const Output& found, int64_t rows) {
  ASSERT_EQ(found.f32.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const auto value = static_cast<float>(expected[i]);
    ASSERT_EQ(found.f32[i], value) << "token " << i / rows << " row " << i % rows;
    ASSERT_EQ(__bfloat162float(found.bf16[i]), __bfloat162float(__float2bfloat16(value)))
        << "bf16, token " << i / rows << " row " << i % rows;
  }
}

}  // namespace nibble::w4a8
