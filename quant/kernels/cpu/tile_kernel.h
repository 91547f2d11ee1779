// The kernels of tile.h, written once over a vector of 16 floats; included by each instruction
// set's source alone, with its own `Simd`:
//
//   Vec                                       16 floats
//   Zero() Set(float) Load(p) Store(p, v)
//   Fma(a, b, c)                              a * b + c, rounded once
//   Add Subtract Multiply Divide
//   AtLeast(low, v) AtMost(high, v)           NaN in v stays
//   PowerOfTwo(t)                             2^n where t = 1.5 * 2^23 + n
//   PowersOfTwo(p)                            2^p[i], -126 .. 127, of 16 int8
//   Place(row, column)                        see TileKernels
//   NibbleTable(p)                            the 16 floats, as NibbleColumn wants them
//   LoadNibbles(p)                            a step's 64 bytes
//   NibbleColumn(table, step, column)         one of its 8 columns
//   BFloat16Column(p, odd)                    column 0 or 1 of the 2 in a step's dwords
//   kTileTokens, kMostPanels, kAccumulators   what its registers hold: tokens, panels, sums
//   kTakesPairs                               has the following, for TileInputs::pairs
//   PairTable(p) NibblePair(table, step, pair)  the same for 2 columns a dword in bf16: Pair
//   SetPair(dword) LoadPair(p)
//   FmaPair(a, b, c)                          c + the second's product, then + the first's
#pragma once

#include <cstdint>

#include "quant/kernels/cpu/tile.h"

#define NIBBLE_INLINE __attribute__((always_inline))

namespace nibble {
namespace {

constexpr int64_t kLineBytes = 64;

// How x is read and multiplied: a column at a time, or a pair of them.
template <class Simd>
struct Columns {
  using Input = float;
  static constexpr int kColumns = 1;
  NIBBLE_INLINE static const float* Inputs(const TileInputs& inputs) { return inputs.x; }
  NIBBLE_INLINE static typename Simd::Vec Set(float x) { return Simd::Set(x); }
  NIBBLE_INLINE static typename Simd::Vec Fma(const typename Simd::Vec& w,
                                              const typename Simd::Vec& x,
                                              const typename Simd::Vec& sum) {
    return Simd::Fma(w, x, sum);
  }
  // The place in a step of what is multiplied `i`-th.
  static constexpr int Place(int i) { return i ^ 1; }
};

template <class Simd>
struct ColumnPairs {
  using Input = uint32_t;
  static constexpr int kColumns = 2;
  NIBBLE_INLINE static const uint32_t* Inputs(const TileInputs& inputs) { return inputs.pairs; }
  NIBBLE_INLINE static typename Simd::Pair Set(uint32_t x) { return Simd::SetPair(x); }
  NIBBLE_INLINE static typename Simd::Vec Fma(typename Simd::Pair w, typename Simd::Pair x,
                                              typename Simd::Vec sum) {
    return Simd::FmaPair(w, x, sum);
  }
  static constexpr int Place(int i) { return i; }
};

// How a panel is read: Load takes a step of kStep columns, Weights gives one of them, or a pair.
template <class Simd>
struct NibblePanels : Columns<Simd> {
  static constexpr int64_t kColumnBytes = kNibbleStepBytes / kColumnStep;
  static constexpr int kStep = kColumnStep;
  using Step = typename Simd::NibbleStep;
  explicit NibblePanels(const TileInputs& inputs) : table(Simd::NibbleTable(inputs.table)) {}
  NIBBLE_INLINE static Step Load(const uint8_t* p) { return Simd::LoadNibbles(p); }
  NIBBLE_INLINE typename Simd::Vec Weights(const Step& step, int column) const {
    return Simd::NibbleColumn(table, step, column);
  }
  typename Simd::Table table;
};

template <class Simd>
struct NibblePairPanels : ColumnPairs<Simd> {
  static constexpr int64_t kColumnBytes = kNibbleStepBytes / kColumnStep;
  static constexpr int kStep = kColumnStep;
  using Step = typename Simd::NibbleStep;
  explicit NibblePairPanels(const TileInputs& inputs) : table(Simd::PairTable(inputs.table)) {}
  NIBBLE_INLINE static Step Load(const uint8_t* p) { return Simd::LoadNibbles(p); }
  NIBBLE_INLINE typename Simd::Pair Weights(const Step& step, int pair) const {
    return Simd::NibblePair(table, step, pair);
  }
  typename Simd::Pair table;
};

template <class Simd>
struct BFloat16Panels : Columns<Simd> {
  static constexpr int64_t kColumnBytes = kBFloat16StepBytes / kColumnStep;
  static constexpr int kStep = kColumnStep;
  using Step = const uint8_t*;
  explicit BFloat16Panels(const TileInputs&) {}
  NIBBLE_INLINE static Step Load(const uint8_t* p) { return p; }
  NIBBLE_INLINE static typename Simd::Vec Weights(Step step, int column) {
    return Simd::BFloat16Column(step + column / 2 * kLineBytes, column % 2);
  }
};

template <class Simd>
struct BFloat16PairPanels : ColumnPairs<Simd> {
  static constexpr int64_t kColumnBytes = kBFloat16StepBytes / kColumnStep;
  static constexpr int kStep = kColumnStep;
  using Step = const uint8_t*;
  explicit BFloat16PairPanels(const TileInputs&) {}
  NIBBLE_INLINE static Step Load(const uint8_t* p) { return p; }
  NIBBLE_INLINE static typename Simd::Pair Weights(Step step, int pair) {
    return Simd::LoadPair(step + pair * kLineBytes);
  }
};

template <class Simd>
struct FloatPanels : Columns<Simd> {
  static constexpr int64_t kColumnBytes = kFloatStepBytes / kColumnStep;
  static constexpr int kStep = 1;
  using Step = const uint8_t*;
  explicit FloatPanels(const TileInputs&) {}
  NIBBLE_INLINE static Step Load(const uint8_t* p) { return p; }
  NIBBLE_INLINE static typename Simd::Vec Weights(Step step, int) {
    return Simd::Load(reinterpret_cast<const float*>(step));
  }
  static constexpr int Place(int i) { return i; }
};

template <class Simd>
typename Simd::Vec GroupScale(const TileInputs& inputs, int panel, int64_t group) {
  const float* scales = inputs.scales[panel];
  if (scales == nullptr) return Simd::Set(1);
  const int8_t* exponents = inputs.exponents[panel];
  if (exponents == nullptr) return Simd::Load(scales + group * kPanelRows);
  return Simd::Multiply(Simd::Load(scales), Simd::PowersOfTwo(exponents + group * kPanelRows));
}

// One tile: kTokens x kPanels sums in registers.
template <class Simd, class Panels, int kTokens, int kPanels>
void MultiplyTile(const TileInputs& inputs, int first_panel, float* totals) {
  using Vec = typename Simd::Vec;
  const Panels reader(inputs);
  const uint8_t* panels[kPanels];
  const uint8_t* next[kPanels];
  for (int p = 0; p < kPanels; ++p) {
    panels[p] = static_cast<const uint8_t*>(inputs.panels[first_panel + p]);
    next[p] = static_cast<const uint8_t*>(inputs.next[first_panel + p]);
  }
  constexpr int kInputs = Panels::kStep / Panels::kColumns;  // of a step, by token
  const typename Panels::Input* x = Panels::Inputs(inputs);
  int64_t group = 0;
  for (int64_t begin = 0; begin < inputs.columns; begin += inputs.group, ++group) {
    const int64_t end =
        begin + inputs.group < inputs.columns ? begin + inputs.group : inputs.columns;
    Vec sums[kTokens][kPanels];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) sums[t][p] = Simd::Zero();
    }
    for (int64_t column = begin; column < end; column += Panels::kStep) {
      typename Panels::Step steps[kPanels];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        const int64_t place = column * Panels::kColumnBytes;
        for (int64_t line = 0; line < Panels::kColumnBytes * Panels::kStep; line += kLineBytes) {
          __builtin_prefetch(next[p] + place + line);
        }
        steps[p] = reader.Load(panels[p] + place);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kInputs; ++i) {
        const int place = Panels::Place(i);
        decltype(reader.Weights(steps[0], 0)) w[kPanels];
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) w[p] = reader.Weights(steps[p], place);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          const auto token = Panels::Set(x[place * kTokens + t]);
#pragma GCC unroll 4
          for (int p = 0; p < kPanels; ++p) sums[t][p] = Panels::Fma(w[p], token, sums[t][p]);
        }
      }
      x += kInputs * kTokens;
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const Vec scale = GroupScale<Simd>(inputs, first_panel + p, group);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        float* total = totals + (t * inputs.panel_count + first_panel + p) * kPanelRows;
        Simd::Store(total, Simd::Fma(sums[t][p], scale, Simd::Load(total)));
      }
    }
  }
}

// As many panels at once as the registers hold beside kTokens tokens.
template <class Simd, class Panels, int kTokens>
void MultiplyTokens(const TileInputs& inputs, float* totals) {
  constexpr int kFit = Simd::kAccumulators / kTokens;
  constexpr int kHeld = kFit < Simd::kMostPanels ? kFit : Simd::kMostPanels;
  constexpr int kPanels = kHeld >= 4 ? 4 : kHeld >= 2 ? 2 : 1;
  int panel = 0;
  for (; panel + kPanels <= inputs.panel_count; panel += kPanels) {
    MultiplyTile<Simd, Panels, kTokens, kPanels>(inputs, panel, totals);
  }
  if constexpr (kPanels > 2) {
    if (panel + 2 <= inputs.panel_count) {
      MultiplyTile<Simd, Panels, kTokens, 2>(inputs, panel, totals);
      panel += 2;
    }
  }
  for (; panel < inputs.panel_count; ++panel) {
    MultiplyTile<Simd, Panels, kTokens, 1>(inputs, panel, totals);
  }
}

template <class Simd, class Panels, int kTokens = Simd::kTileTokens>
void MultiplyKind(const TileInputs& inputs, float* totals) {
  if (inputs.tokens == kTokens) return MultiplyTokens<Simd, Panels, kTokens>(inputs, totals);
  if constexpr (kTokens > 1) MultiplyKind<Simd, Panels, kTokens - 1>(inputs, totals);
}

template <class Simd>
void Multiply(const TileInputs& inputs, float* totals) {
  if constexpr (Simd::kTakesPairs) {
    if (inputs.pairs != nullptr) {
      return inputs.kind == PanelKind::kNibbles
                 ? MultiplyKind<Simd, NibblePairPanels<Simd>>(inputs, totals)
                 : MultiplyKind<Simd, BFloat16PairPanels<Simd>>(inputs, totals);
    }
  }
  switch (inputs.kind) {
    case PanelKind::kNibbles:
      return MultiplyKind<Simd, NibblePanels<Simd>>(inputs, totals);
    case PanelKind::kBFloat16:
      return MultiplyKind<Simd, BFloat16Panels<Simd>>(inputs, totals);
    case PanelKind::kFloat:
      return MultiplyKind<Simd, FloatPanels<Simd>>(inputs, totals);
  }
}

// exp, to 2 units in the last place; its argument is clamped to where the result is a normal float.
// x = n ln 2 + r with |r| <= ln 2 / 2, then Taylor's polynomial of degree 7.
template <class Simd>
typename Simd::Vec Exp(typename Simd::Vec x) {
  using Vec = typename Simd::Vec;
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float kTaylor[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24,
                               1.0f / 6,    0.5f,       1.0f,       1.0f};
  x = Simd::AtMost(Simd::Set(88.0f), Simd::AtLeast(Simd::Set(-87.0f), x));
  const Vec shifted = Simd::Fma(x, Simd::Set(kLog2E), Simd::Set(kMagic));
  const Vec n = Simd::Subtract(shifted, Simd::Set(kMagic));
  Vec r = Simd::Fma(n, Simd::Set(-kLn2High), x);
  r = Simd::Fma(n, Simd::Set(-kLn2Low), r);
  Vec sum = Simd::Set(kTaylor[0]);
  for (int i = 1; i < 8; ++i) sum = Simd::Fma(sum, r, Simd::Set(kTaylor[i]));
  return Simd::Multiply(sum, Simd::PowerOfTwo(shifted));
}

// `op` over the 16 lanes, in a fixed tree.
template <class Simd, class Op>
float Reduce(typename Simd::Vec v, const Op& op) {
  float lanes[kPanelRows];
  Simd::Store(lanes, v);
  for (int half = kPanelRows / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = op(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}

template <class Simd>
float Exponentials(float* scores, int64_t count) {
  using Vec = typename Simd::Vec;
  const int64_t padded = (count + kPanelRows - 1) / kPanelRows * kPanelRows;
  for (int64_t i = count; i < padded; ++i) scores[i] = scores[0];
  Vec largest = Simd::Load(scores);
  for (int64_t i = kPanelRows; i < padded; i += kPanelRows) {
    largest = Simd::AtLeast(largest, Simd::Load(scores + i));
  }
  const Vec shift =
      Simd::Set(Reduce<Simd>(largest, [](float a, float b) { return a < b ? b : a; }));
  Vec sum = Simd::Zero();
  for (int64_t i = 0; i < padded; i += kPanelRows) {
    Simd::Store(scores + i, Exp<Simd>(Simd::Subtract(Simd::Load(scores + i), shift)));
    for (int64_t j = count; j < i + kPanelRows; ++j) scores[j] = 0;
    sum = Simd::Add(sum, Simd::Load(scores + i));
  }
  return Reduce<Simd>(sum, [](float a, float b) { return a + b; });
}

template <class Simd>
typename Simd::Vec SiluMultiply(typename Simd::Vec gate, typename Simd::Vec up) {
  const auto exponential = Exp<Simd>(Simd::Subtract(Simd::Zero(), gate));
  const auto silu = Simd::Divide(gate, Simd::Add(Simd::Set(1), exponential));
  return Simd::Multiply(silu, up);
}

template <class Simd>
void SiluMultiplyRow(float* gate, const float* up, int64_t count) {
  int64_t i = 0;
  for (; i + kPanelRows <= count; i += kPanelRows) {
    Simd::Store(gate + i, SiluMultiply<Simd>(Simd::Load(gate + i), Simd::Load(up + i)));
  }
  if (i == count) return;
  float last[2][kPanelRows] = {};
  for (int64_t j = i; j < count; ++j) {
    last[0][j - i] = gate[j];
    last[1][j - i] = up[j];
  }
  Simd::Store(last[0], SiluMultiply<Simd>(Simd::Load(last[0]), Simd::Load(last[1])));
  for (int64_t j = i; j < count; ++j) gate[j] = last[0][j - i];
}

template <class Simd>
constexpr TileKernels MakeTileKernels() {
  static_assert(Simd::kTileTokens <= kMaxTileTokens);
  TileKernels kernels = {{},
                         Simd::kTileTokens,
                         Simd::kTakesPairs,
                         Multiply<Simd>,
                         Exponentials<Simd>,
                         SiluMultiplyRow<Simd>};
  for (int row = 0; row < kPanelRows; ++row) {
    for (int column = 0; column < kColumnStep; ++column) {
      kernels.places[row][column] = Simd::Place(row, column);
    }
  }
  return kernels;
}

}  // namespace
}  // namespace nibble
