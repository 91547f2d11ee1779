#include "server/ops/data_root_lock.h"

#include <gtest/gtest.h>

#include <optional>

#include "tests/temp_folder.h"

namespace nibble {
namespace {

TEST(DataRootLock, OneHolderAtATime) {
  const TempFolder folder;
  const DataRoot root{folder.path()};
  std::optional<DataRootLock> first = DataRootLock::Take(root).value();
  const auto second = DataRootLock::Take(root);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(second.status().message().find("which another nibbled uses"), std::string::npos);
  first.reset();
  EXPECT_TRUE(DataRootLock::Take(root).ok());
}

TEST(DataRootLock, AMissingRootIsAnError) {
  EXPECT_EQ(DataRootLock::Take({"/nonexistent/root"}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace nibble
