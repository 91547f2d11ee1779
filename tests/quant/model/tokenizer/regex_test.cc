#include "quant/model/tokenizer/regex.h"

#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "quant/base/utf8.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;

// The matches, in order.
std::vector<std::string> Matches(std::string_view pattern, std::string_view text) {
  const auto regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  std::vector<std::string> matches;
  if (!regex.ok()) return matches;
  std::string all;
  EXPECT_TRUE(regex
                  ->Split(text,
                          [&](std::string_view piece, Regex::Piece kind) {
                            all += piece;
                            if (kind == Regex::Piece::kMatch) matches.emplace_back(piece);
                            return absl::OkStatus();
                          })
                  .ok());
  EXPECT_EQ(all, text);
  return matches;
}

TEST(RegexTest, PiecesCoverTheText) {
  EXPECT_THAT(Matches("a+", "xaaybaz"), ElementsAre("aa", "a"));
  EXPECT_THAT(Matches("a", ""), ElementsAre());
  EXPECT_THAT(Matches("\\p{L}+", "粉屋 ab1é"), ElementsAre("粉屋", "ab", "é"));
}

// Oniguruma's \s is the property White_Space, inside a class as well.
TEST(RegexTest, SpacesAreThoseOfUnicode) {
  for (const char* pattern : {"\\s", "[\\s]", "[^\\S]"}) {
    const auto regex = Regex::Compile(pattern);
    ASSERT_TRUE(regex.ok()) << regex.status();
    for (char32_t c = 0; c < 0x110000; ++c) {
      if (c >= 0xd800 && c < 0xe000) continue;
      std::string text;
      AppendUtf8(c, text);
      bool matched = false;
      ASSERT_TRUE(regex
                      ->Split(text,
                              [&](std::string_view, Regex::Piece kind) {
                                matched = kind == Regex::Piece::kMatch;
                                return absl::OkStatus();
                              })
                      .ok());
      ASSERT_EQ(matched, IsWhiteSpace(c)) << pattern << " " << static_cast<uint32_t>(c);
    }
  }
}

TEST(RegexTest, RubyMeaningsAreKept) {
  EXPECT_THAT(Matches("^a|b$", "ab\nab"), ElementsAre("a", "b", "a", "b"));  // ends of lines
  EXPECT_THAT(Matches("\\v", "\v\n"), ElementsAre("\v"));                    // one character
  EXPECT_THAT(Matches(".+", "ab\r\nc"), ElementsAre("ab\r", "c"));           // all but \n
  EXPECT_THAT(Matches("(?i:'s)", "'S's'\u017f"), ElementsAre("'S", "'s", "'\u017f"));
  EXPECT_THAT(Matches("a?+b", "abb"), ElementsAre("ab", "b"));
  EXPECT_THAT(Matches("x\\x{1F600}", "x\U0001F600"), ElementsAre("x\U0001F600"));
}

TEST(RegexTest, WhatMeansSomethingElseIsRefused) {
  for (const char* pattern :
       {"\\h",    "\\w",        "\\W",     "\\b",     "\\B",    "\\X",    "\\R",
        "\\K",    "\\G",        "\\1",     "\\k<a>",  "\\x41",  "\\pL",   "(?m:a)",
        "(?i)a",  "(?<name>a)", "(*FAIL)", "a{1,3}+", "[a[b]]", "[a&&b]", "[]a]",
        "(?#x)a", "(?R)",       "\\u0041", "\\p{L"}) {
    EXPECT_EQ(Regex::Compile(pattern).status().code(), absl::StatusCode::kUnimplemented) << pattern;
  }
}

TEST(RegexTest, LiteralsMatchThemselves) {
  const auto regex = Regex::Literal("a.*\\E(é)");
  ASSERT_TRUE(regex.ok()) << regex.status();
  int matches = 0;
  ASSERT_TRUE(regex
                  ->Split("xa.*\\E(é)a.b",
                          [&](std::string_view piece, Regex::Piece kind) {
                            if (kind == Regex::Piece::kMatch) {
                              ++matches;
                              EXPECT_EQ(piece, "a.*\\E(é)");
                            }
                            return absl::OkStatus();
                          })
                  .ok());
  EXPECT_EQ(matches, 1);
  EXPECT_FALSE(Regex::Literal("").ok());
}

TEST(RegexTest, ErrorsOfTheSinkEndTheSplit) {
  const auto regex = Regex::Compile("a");
  int calls = 0;
  EXPECT_EQ(regex
                ->Split("aaa",
                        [&](std::string_view, Regex::Piece) {
                          ++calls;
                          return absl::CancelledError("");
                        })
                .code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace nibble
