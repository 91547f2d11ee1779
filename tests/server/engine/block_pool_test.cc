#include "server/engine/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using testing::ElementsAre;
using testing::UnorderedElementsAre;

std::vector<int32_t> Take(BlockPool& pool, int64_t count) {
  std::vector<int32_t> blocks;
  pool.Take(count, blocks);
  return blocks;
}

// A sequence of two blocks of two tokens, remembered: {1, 2}, {3, 4}.
struct TwoBlocks {
  explicit TwoBlocks(BlockPool& pool) : blocks(Take(pool, 2)) {
    first = pool.Remember(blocks[0], kEmptyPrefix, {1, 2});
    second = pool.Remember(blocks[1], first, {3, 4});
  }
  std::vector<int32_t> blocks;
  PrefixId first;
  PrefixId second;
};

TEST(BlockPoolTest, FindsAPrefixByAllItsTokens) {
  BlockPool pool(4);
  const TwoBlocks known(pool);
  EXPECT_EQ(pool.Find(kEmptyPrefix, {1, 2})->block, known.blocks[0]);
  EXPECT_EQ(pool.Find(known.first, {3, 4})->block, known.blocks[1]);
  EXPECT_EQ(pool.Find(known.first, {3, 4})->prefix, known.second);
  EXPECT_FALSE(pool.Find(kEmptyPrefix, {3, 4}));
  EXPECT_FALSE(pool.Find(known.first, {3, 5}));
}

TEST(BlockPoolTest, SharedBlocksAreFreeWhenTheLastHolderGoes) {
  BlockPool pool(2);
  const std::vector<int32_t> blocks = Take(pool, 2);
  pool.Share(blocks[0]);
  pool.Release(blocks);
  EXPECT_EQ(pool.available(), 1);
  EXPECT_EQ(pool.holders(blocks[0]), 1);
  pool.Release({blocks[0]});
  EXPECT_EQ(pool.available(), 2);
}

TEST(BlockPoolTest, RememberedBlocksOutliveTheirHoldersUntilWanted) {
  BlockPool pool(3);
  const TwoBlocks known(pool);
  pool.Release(known.blocks);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_THAT(Take(pool, 1), ElementsAre(2)) << "a block that remembers nothing goes first";
  EXPECT_TRUE(pool.Find(known.first, {3, 4}));
  Take(pool, 1);
  EXPECT_FALSE(pool.Find(known.first, {3, 4})) << "the end of a sequence is forgotten first";
  EXPECT_TRUE(pool.Find(kEmptyPrefix, {1, 2}));
}

TEST(BlockPoolTest, TheLeastRecentlyUsedPrefixIsForgotten) {
  BlockPool pool(2);
  const std::vector<int32_t> blocks = Take(pool, 2);
  pool.Remember(blocks[0], kEmptyPrefix, {1, 2});
  pool.Remember(blocks[1], kEmptyPrefix, {3, 4});
  pool.Release({blocks[0]});
  pool.Release({blocks[1]});
  pool.Share(blocks[0]);
  pool.Release({blocks[0]});
  EXPECT_THAT(Take(pool, 1), ElementsAre(blocks[1]));
  EXPECT_TRUE(pool.Find(kEmptyPrefix, {1, 2}));
}

TEST(BlockPoolTest, ASecondBlockOfAKnownPrefixIsNotRemembered) {
  BlockPool pool(3);
  const TwoBlocks known(pool);
  const std::vector<int32_t> twin = Take(pool, 1);
  EXPECT_EQ(pool.Remember(twin[0], kEmptyPrefix, {1, 2}), known.first);
  EXPECT_EQ(pool.Find(kEmptyPrefix, {1, 2})->block, known.blocks[0]);
  pool.Release(known.blocks);
  pool.Release(twin);
  EXPECT_THAT(Take(pool, 1), ElementsAre(twin[0]));
}

TEST(BlockPoolTest, AForgottenPrefixNeverComesBackUnderItsOldId) {
  BlockPool pool(1);
  const PrefixId old = pool.Remember(Take(pool, 1)[0], kEmptyPrefix, {1, 2});
  pool.Release({0});
  Take(pool, 1);
  EXPECT_NE(pool.Remember(0, kEmptyPrefix, {5, 6}), old);
  EXPECT_FALSE(pool.Find(kEmptyPrefix, {1, 2}));
}

TEST(BlockPoolTest, AllIsForgottenAtOnce) {
  BlockPool pool(3);
  const TwoBlocks known(pool);
  pool.Release(known.blocks);
  pool.ForgetAll();
  EXPECT_FALSE(pool.Find(kEmptyPrefix, {1, 2}));
  EXPECT_EQ(pool.available(), 3);
  EXPECT_THAT(Take(pool, 3), UnorderedElementsAre(0, 1, 2));
}

}  // namespace
}  // namespace nibble
