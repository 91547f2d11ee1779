#include "server/ops/resources.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(ResourcesTest, MemTotalIsInKilobytes) {
  EXPECT_EQ(ParseMemTotal("MemTotal:       24683616 kB\nMemFree:        21000000 kB\n"),
            int64_t{24683616} * 1024);
  EXPECT_EQ(ParseMemTotal("MemFree: 1 kB\nMemTotal: 2 kB\n"), 2048);
  EXPECT_EQ(ParseMemTotal("MemFree: 1 kB\n"), 0);
  EXPECT_EQ(ParseMemTotal(""), 0);
}

TEST(ResourcesTest, ThisMachineHasSome) {
  const auto found = FindResources("/");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_GT(found->memory_bytes, int64_t{64} << 20);
  EXPECT_GE(found->disk_free_bytes, 0);
  EXPECT_EQ(found->device_bytes, 0);
  EXPECT_EQ(FindResources("/no/such/folder").status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace nibble
