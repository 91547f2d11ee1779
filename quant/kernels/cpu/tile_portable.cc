// Plain C++ for a machine without AVX2, and the other sets' reference.
#include "quant/kernels/cpu/tile_kernel.h"

namespace nibble {
namespace {

struct Portable {
  struct Vec {
    float lanes[kPanelRows];
  };
  using Table = const float*;
  using NibbleStep = const uint8_t*;
  static constexpr bool kTakesPairs = false;
  static constexpr int kMostPanels = 4;
  static constexpr int kTileTokens = 2;
  static constexpr int kAccumulators = 2;

  template <class Function>
  static Vec Each(const Function& function) {
    Vec out;
    for (int i = 0; i < kPanelRows; ++i) out.lanes[i] = function(i);
    return out;
  }
  static Vec Zero() { return Set(0); }
  static Vec Set(float x) {
    return Each([&](int) { return x; });
  }
  static Vec Load(const float* p) {
    return Each([&](int i) { return p[i]; });
  }
  static void Store(float* p, const Vec& v) {
    for (int i = 0; i < kPanelRows; ++i) p[i] = v.lanes[i];
  }
  static Vec Fma(const Vec& a, const Vec& b, const Vec& c) {
    return Each([&](int i) { return __builtin_fmaf(a.lanes[i], b.lanes[i], c.lanes[i]); });
  }
  static Vec Add(const Vec& a, const Vec& b) {
    return Each([&](int i) { return a.lanes[i] + b.lanes[i]; });
  }
  static Vec Subtract(const Vec& a, const Vec& b) {
    return Each([&](int i) { return a.lanes[i] - b.lanes[i]; });
  }
  static Vec Multiply(const Vec& a, const Vec& b) {
    return Each([&](int i) { return a.lanes[i] * b.lanes[i]; });
  }
  static Vec Divide(const Vec& a, const Vec& b) {
    return Each([&](int i) { return a.lanes[i] / b.lanes[i]; });
  }
  static Vec AtLeast(const Vec& low, const Vec& v) {
    return Each([&](int i) { return v.lanes[i] < low.lanes[i] ? low.lanes[i] : v.lanes[i]; });
  }
  static Vec AtMost(const Vec& high, const Vec& v) {
    return Each([&](int i) { return high.lanes[i] < v.lanes[i] ? high.lanes[i] : v.lanes[i]; });
  }
  static float FromBits(uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof(x));
    return x;
  }
  static Vec PowersOfTwo(const int8_t* p) {
    return Each([&](int i) { return FromBits(static_cast<uint32_t>(p[i] + 127) << 23); });
  }
  static Vec PowerOfTwo(const Vec& t) {
    return Each([&](int i) {
      uint32_t bits;
      __builtin_memcpy(&bits, &t.lanes[i], sizeof(bits));
      return FromBits((bits << 23) + (127u << 23));
    });
  }

  static constexpr NibblePlace Place(int row, int column) {
    return {kPanelRows * (column / 2) + row, column % 2 == 1};
  }
  static Table NibbleTable(const float* table) { return table; }
  static NibbleStep LoadNibbles(const uint8_t* p) { return p; }
  static Vec NibbleColumn(Table table, NibbleStep step, int column) {
    return Each([&](int row) {
      const NibblePlace place = Place(row, column);
      return table[(step[place.byte] >> (place.high ? 4 : 0)) & 15];
    });
  }
  static Vec BFloat16Column(const uint8_t* p, bool odd) {
    return Each([&](int row) {
      uint16_t bits;
      __builtin_memcpy(&bits, p + 4 * row + (odd ? 2 : 0), sizeof(bits));
      return FromBits(static_cast<uint32_t>(bits) << 16);
    });
  }
};

}  // namespace

constinit const TileKernels kPortableKernels = MakeTileKernels<Portable>();

}  // namespace nibble
