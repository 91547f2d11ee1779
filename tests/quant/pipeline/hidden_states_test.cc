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

TEST(HiddenStatesTest, TheFirstPlaceThatHoldsThemIsTaken) {
  const StatesBudget budget = GpuStatesBudget(400, 256);
  EXPECT_EQ(ChooseStatesPlace(100, budget), StatesPlace::kDevice);
  // Page-locked, 101 to 128 bytes take 128, and 129 take 256.
  EXPECT_EQ(ChooseStatesPlace(128, budget), StatesPlace::kPinnedHost);
  EXPECT_EQ(ChooseStatesPlace(129, budget), StatesPlace::kFile);
  EXPECT_EQ(ChooseStatesPlace(128, CpuStatesBudget(256)), StatesPlace::kDevice);
  EXPECT_EQ(ChooseStatesPlace(129, CpuStatesBudget(256)), StatesPlace::kFile);
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
