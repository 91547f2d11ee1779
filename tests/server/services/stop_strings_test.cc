#include "server/services/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

namespace nibble {
namespace {

TEST(StopStrings, HoldsWhatMayBecomeAStopAndReleasesWhatDoesNot) {
  StopStrings stops({"END"});
  EXPECT_EQ(stops.Push("one E"), "one ");
  EXPECT_EQ(stops.Push("N"), "");
  EXPECT_EQ(stops.Push("V"), "ENV");
  EXPECT_EQ(stops.Push(" EN"), " ");
  EXPECT_EQ(stops.Push("D more"), "");
  EXPECT_TRUE(stops.matched());
  EXPECT_EQ(stops.match(), "END");
  EXPECT_EQ(stops.Push("after"), "");
  EXPECT_EQ(stops.Finish(), "");
}

TEST(StopStrings, TheEarliestOfSeveralEndsIt) {
  StopStrings stops({"cd", "bcx", "b"});
  EXPECT_EQ(stops.Push("abcd"), "a");
  EXPECT_EQ(stops.match(), "b");
}

TEST(StopStrings, AnEndWithoutAMatchReleasesWhatWasHeld) {
  StopStrings stops({"abab!"});
  EXPECT_EQ(stops.Push("xabab"), "x");
  EXPECT_EQ(stops.Finish(), "abab");
}

// Where the text begins that no stop string lets through, in the text as it has come piece by
// piece: the first piece that completes a stop decides, and in it the earliest.
size_t FirstStop(const std::vector<std::string>& pieces, const std::vector<std::string>& stops) {
  std::string text;
  for (const std::string& piece : pieces) {
    text += piece;
    size_t first = std::string::npos;
    for (const std::string& stop : stops) first = std::min(first, text.find(stop));
    if (first != std::string::npos) return first;
  }
  return std::string::npos;
}

TEST(StopStrings, ShowsExactlyWhatIsBeforeTheFirstStop) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const auto letters = [&](size_t most) {
    std::string text(1 + random() % most, ' ');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> stop_list;
    for (size_t i = 0; i < 1 + random() % 3; ++i) stop_list.push_back(letters(5));
    std::vector<std::string> pieces;
    for (size_t i = 0; i < random() % 12; ++i) pieces.push_back(letters(4));

    StopStrings stops(stop_list);
    std::string shown;
    std::string whole;
    for (const std::string& piece : pieces) {
      shown += stops.Push(piece);
      whole += piece;
    }
    shown += stops.Finish();
    const size_t first = FirstStop(pieces, stop_list);
    ASSERT_EQ(stops.matched(), first != std::string::npos);
    ASSERT_EQ(shown, whole.substr(0, first)) << whole;
  }
}

}  // namespace
}  // namespace nibble
