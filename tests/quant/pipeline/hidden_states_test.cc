#include "quant/pipeline/hidden_states.h"

#include <gtest/gtest.h>

#include "tests/temp_folder.h"

namespace nibble {
namespace {

TEST(HiddenStatesTest, MemoryAndFileGiveBackWhatWasWritten) {
  const TempFolder folder;
  const at::Tensor rows = at::arange(48, at::kFloat).view({6, 8});
  for (const auto& [place, bytes] :
       {std::pair<StatesPlace, int64_t>{StatesPlace::kDevice, 6 * 8 * 4},
        {StatesPlace::kFile, 191}}) {
    auto states = HiddenStates::Make(6, 8, at::kFloat, {.device = bytes}, folder.path());
    ASSERT_TRUE(states.ok()) << states.status();
    EXPECT_EQ(states->place(), place);
    states->Write(0, rows.narrow(0, 0, 2));
    states->Write(2, rows.narrow(0, 2, 4));
    EXPECT_TRUE(states->Read(1, 4).equal(rows.narrow(0, 1, 4))) << StatesPlaceName(place);
    EXPECT_TRUE(std::filesystem::is_empty(folder.path()));  // the file has no name
  }
}

TEST(HiddenStatesTest, AFileThatCantBeMadeIsAnError) {
  EXPECT_FALSE(HiddenStates::Make(6, 8, at::kFloat, {}, "/nonexistent").ok());
}

TEST(HiddenStatesTest, TheCpuHasABudget) {
  const StatesBudget budget = FreeStatesBudget(at::kCPU);
  EXPECT_GT(budget.device, 0);
  EXPECT_EQ(budget.pinned_host, 0);
}

}  // namespace
}  // namespace nibble
