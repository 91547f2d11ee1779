#include "quant/base/device.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(DeviceTest, NamesAreReadBack) {
  for (const char* name : {"cpu", "cuda:0", "cuda:7", "cuda:12"}) {
    const auto device = ParseDevice(name);
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_EQ(DeviceName(*device), name);
    EXPECT_EQ(device->is_cuda(), std::string_view(name) != "cpu");
  }
  EXPECT_EQ(ParseDevice("cuda:3")->index, 3);
}

TEST(DeviceTest, RefusesOtherNames) {
  for (const char* name : {"", "CPU", "cuda", "cuda:", "cuda:x", "cuda:1x", "cuda:-0", "cuda:01",
                           "cuda: 1", "cuda:99999999999", "gpu:0"}) {
    EXPECT_EQ(ParseDevice(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

}  // namespace
}  // namespace nibble
