// Runs on a GPU only.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "quant/kernels/cuda/embedding.h"
#include "tests/quant/kernels/cuda/device_array.h"
#include "tests/quant/kernels/cuda/rows.h"

namespace nibble {
namespace {

constexpr int64_t kVocab = 40;
constexpr int64_t kWidth = 72;

TEST(Embed, GathersAndAddsPositions) {
  std::mt19937 random(5);
  const Bf16s table = RandomRows(random, kVocab, kWidth, 2);
  const Bf16s rows = RandomRows(random, 10, kWidth, 2);
  const std::vector<int32_t> ids = {39, 0, 7, 7, 40, -1, 3};
  const std::vector<int32_t> places = {0, 9, 4, 5, 1, 1, 10};
  DeviceArray<__nv_bfloat16> device_table(table);
  DeviceArray<__nv_bfloat16> device_rows(rows);
  DeviceArray<int32_t> device_ids(ids);
  DeviceArray<int32_t> device_places(places);
  const auto tokens = static_cast<int64_t>(ids.size());
  DeviceArray<__nv_bfloat16> plain(tokens * kWidth);
  DeviceArray<__nv_bfloat16> placed(tokens * kWidth);
  const PositionTable positions = {device_rows.data(), device_places.data(), 10};
  ASSERT_EQ(Embed(device_table.data(), kVocab, kWidth, device_ids.data(), nullptr, tokens,
                  plain.data(), nullptr),
            absl::OkStatus());
  ASSERT_EQ(Embed(device_table.data(), kVocab, kWidth, device_ids.data(), &positions, tokens,
                  placed.data(), nullptr),
            absl::OkStatus());
  const Bf16s found = plain.Read();
  const Bf16s found_placed = placed.Read();
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < kWidth; ++i) {
      SCOPED_TRACE(testing::Message() << "token " << t << " column " << i);
      const float value = float(found[t * kWidth + i]);
      const float with_place = float(found_placed[t * kWidth + i]);
      if (ids[t] < 0 || ids[t] >= kVocab) {
        ASSERT_TRUE(std::isnan(value));
        ASSERT_TRUE(std::isnan(with_place));
        continue;
      }
      ASSERT_EQ(value, float(table[ids[t] * kWidth + i]));
      if (places[t] >= 10) {
        ASSERT_TRUE(std::isnan(with_place));
        continue;
      }
      ASSERT_EQ(with_place, float(__float2bfloat16(value + float(rows[places[t] * kWidth + i]))));
    }
  }
}

}  // namespace
}  // namespace nibble
