// Against what the `tokenizers` package does: tests/fixtures/make_tokenizer_fixtures.py.
#include "quant/model/tokenizer/tokenizer.h"

#include <gmock/gmock.h>

#include <random>

#include "absl/strings/escaping.h"
#include "quant/base/utf8.h"
#include "quant/model/checkpoint/json.h"

namespace nibble {
namespace {

std::filesystem::path FixtureFolder(const std::string& name) {
  return std::filesystem::path(NIBBLE_FIXTURES) / "tokenizers" / name;
}

std::unique_ptr<Tokenizer> LoadFixture(const std::string& name) {
  auto tokenizer = Tokenizer::Load(FixtureFolder(name));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text,
                            SpecialTokens special = SpecialTokens::kNone) {
  const auto ids = tokenizer.Encode(text, special);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.value_or(std::vector<int32_t>());
}

class FixtureTest : public testing::TestWithParam<std::string> {};

TEST_P(FixtureTest, EqualsThePackageTokenForToken) {
  const auto tokenizer = LoadFixture(GetParam());
  const auto cases = ReadJsonFile(FixtureFolder(GetParam()) / "cases.json");
  ASSERT_TRUE(cases.ok()) << cases.status();
  ASSERT_GT(cases->size(), 80u);
  for (const Json& one : *cases) {
    std::string text;
    ASSERT_TRUE(absl::Base64Unescape(one["base64"].get<std::string>(), &text));
    const auto ids = one["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(Encode(*tokenizer, text), ids) << Quoted(text);
    EXPECT_EQ(Encode(*tokenizer, text, SpecialTokens::kAdd),
              one["with_special"].get<std::vector<int32_t>>())
        << Quoted(text);
    const auto decoded = tokenizer->Decode(ids, DecodeSpecial::kSkip);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(*decoded, one["decoded"].get<std::string>()) << Quoted(text);
  }
}

INSTANTIATE_TEST_SUITE_P(All, FixtureTest, testing::Values("gpt2", "prefixed", "llama3", "smollm"));

// Any code points but surrogates, and many of those that patterns care for.
std::string RandomText(std::mt19937& random) {
  std::string text;
  for (size_t length = random() % 60; length > 0; --length) {
    char32_t code_point = random() % 4 == 0 ? random() % 0x110000 : random() % 0x80;
    if (code_point >= 0xd800 && code_point < 0xe000) code_point = ' ';
    AppendUtf8(code_point, text);
  }
  return text;
}

TEST(TokenizerTest, DecodingGivesTheTextBack) {
  const auto seed = static_cast<uint32_t>(std::random_device()());
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (const char* name : {"gpt2", "llama3"}) {  // these have a token for every byte
    const auto tokenizer = LoadFixture(name);
    for (int i = 0; i < 2000; ++i) {
      const std::string text = RandomText(random);
      const auto ids = Encode(*tokenizer, text);
      const auto decoded = tokenizer->Decode(ids, DecodeSpecial::kKeep);
      ASSERT_TRUE(decoded.ok()) << decoded.status();
      ASSERT_EQ(*decoded, text) << name << " " << Quoted(text);
    }
  }
}

// Whatever bytes come, Encode sees what ReplaceInvalidUtf8 makes of them.
TEST(TokenizerTest, RandomBytesEncodeAsTheirReplacement) {
  const auto seed = static_cast<uint32_t>(std::random_device()());
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const auto tokenizer = LoadFixture("llama3");
  for (int i = 0; i < 2000; ++i) {
    std::string bytes(random() % 40, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    const auto decoded = tokenizer->Decode(Encode(*tokenizer, bytes), DecodeSpecial::kKeep);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    ASSERT_EQ(*decoded, ReplaceInvalidUtf8(bytes));
  }
}

TEST(TokenizerTest, StreamingEqualsDecodingUnderAnySplit) {
  const auto seed = static_cast<uint32_t>(std::random_device()());
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 5000; ++i) {
    std::string bytes = RandomText(random);
    if (!bytes.empty() && random() % 2 == 0) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    StreamDecoder decoder;
    std::string shown;
    for (size_t at = 0; at < bytes.size();) {
      const size_t step = random() % 5;
      const std::string piece = decoder.Push(std::string_view(bytes).substr(at, step));
      ASSERT_TRUE(IsValidUtf8(piece));
      shown += piece;
      at += step;
    }
    shown += decoder.Finish();
    ASSERT_EQ(shown, ReplaceInvalidUtf8(bytes)) << Quoted(bytes);
  }
}

TEST(StreamDecoderTest, CharactersWaitUntilTheyAreWhole) {
  StreamDecoder decoder;
  EXPECT_EQ(decoder.Push("a\xf0\x9f"), "a");
  EXPECT_EQ(decoder.Push("\x98"), "");
  EXPECT_EQ(decoder.Push("\x80z"), "\U0001F600z");
  EXPECT_EQ(decoder.Push("\xe2\x82"), "");
  EXPECT_EQ(decoder.Push("!"), "\uFFFD!");
  EXPECT_EQ(decoder.Push("\xe2\x82"), "");
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(TokenizerTest, TokensByNameAndById) {
  const auto tokenizer = LoadFixture("gpt2");
  EXPECT_EQ(*tokenizer->TokenId("</s>"), 0);
  EXPECT_EQ(*tokenizer->TokenId("<|end|>"), 2);
  const auto space_t = tokenizer->TokenId("Ġt");
  ASSERT_TRUE(space_t.ok()) << space_t.status();
  EXPECT_EQ(*tokenizer->TokenBytes(*space_t), " t");
  EXPECT_EQ(*tokenizer->TokenBytes(2), "<|end|>");
  EXPECT_EQ(tokenizer->TokenId("no such").status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(tokenizer->IsSpecial(0));
  EXPECT_TRUE(tokenizer->IsSpecial(*tokenizer->TokenId("<mask>")));
  EXPECT_FALSE(tokenizer->IsSpecial(*tokenizer->TokenId("<ext>")));
  EXPECT_FALSE(tokenizer->IsSpecial(*space_t));
  EXPECT_FALSE(tokenizer->IsSpecial(-1));
  EXPECT_EQ(*tokenizer->TokenBytes(*tokenizer->TokenId("粉粉")), "粉粉");
}

TEST(TokenizerTest, IdsOutsideTheVocabularyAreOutOfRange) {
  const auto tokenizer = LoadFixture("smollm");
  for (const int32_t id : {-1, tokenizer->vocab_size(), 1 << 30}) {
    EXPECT_EQ(tokenizer->TokenBytes(id).status().code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(tokenizer->Decode({0, id}, DecodeSpecial::kSkip).status().code(),
              absl::StatusCode::kOutOfRange);
  }
}

TEST(TokenizerTest, SpecialTokensAreSkippedOrKept) {
  const auto tokenizer = LoadFixture("llama3");
  const auto ids = Encode(*tokenizer, "a<|end|>b", SpecialTokens::kAdd);
  EXPECT_EQ(ids.front(), 0);
  EXPECT_EQ(ids.back(), 1);
  EXPECT_EQ(*tokenizer->Decode(ids, DecodeSpecial::kSkip), "ab");
  EXPECT_EQ(*tokenizer->Decode(ids, DecodeSpecial::kKeep), "<|begin|>a<|end|>b<|end|>");
}

// The merge loop is O(n log n): a pre-token of a megabyte would take hours otherwise.
TEST(TokenizerTest, OneLongWordEndsSoon) {
  const auto tokenizer = LoadFixture("gpt2");
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += "turningthe";
  const auto ids = Encode(*tokenizer, text);
  EXPECT_LT(ids.size(), text.size() / 2);
  EXPECT_EQ(*tokenizer->Decode(ids, DecodeSpecial::kKeep), text);
}

TEST(TokenizerTest, LongRunsOfSpacesAndNewlinesEndSoon) {
  for (const char* name : {"gpt2", "llama3", "smollm"}) {
    const auto tokenizer = LoadFixture(name);
    for (const std::string& run : {std::string(1'000'000, ' '), std::string(1'000'000, '\n'),
                                   std::string(1'000'000, ' ') + "x"}) {
      EXPECT_FALSE(Encode(*tokenizer, run).empty()) << name;
    }
  }
}

}  // namespace
}  // namespace nibble
