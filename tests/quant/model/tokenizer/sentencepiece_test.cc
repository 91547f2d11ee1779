// Against what the `sentencepiece` package does: tests/fixtures/make_sentencepiece_fixtures.py.
#include <gmock/gmock.h>

#include <fstream>
#include <random>

#include "absl/strings/escaping.h"
#include "quant/base/strings.h"
#include "quant/base/utf8.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/tokenizer/tokenizer.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;
using std::string_literals::operator""s;

std::filesystem::path FixtureFolder(const std::string& name) {
  return std::filesystem::path(NIBBLE_FIXTURES) / "sentencepiece" / name;
}

std::unique_ptr<Tokenizer> LoadFolder(const std::filesystem::path& folder) {
  auto tokenizer = Tokenizer::Load(folder);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

Ids Encode(const Tokenizer& tokenizer, std::string_view text,
           SpecialTokens special = SpecialTokens::kNone) {
  const auto ids = tokenizer.Encode(text, special);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.value_or(Ids());
}

std::string Decode(const Tokenizer& tokenizer, const Ids& ids,
                   DecodeSpecial special = DecodeSpecial::kSkip) {
  const auto text = tokenizer.Decode(ids, special);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.value_or("");
}

class SentencePieceFixtureTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    tokenizer_ = LoadFolder(FixtureFolder(GetParam()));
    auto cases = ReadJsonFile(FixtureFolder(GetParam()) / "cases.json");
    ASSERT_TRUE(cases.ok()) << cases.status();
    cases_ = *std::move(cases);
    ASSERT_GT(cases_["texts"].size(), 100u);
    ASSERT_EQ(cases_["decodings"].size(), 150u);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  Json cases_;
};

TEST_P(SentencePieceFixtureTest, EqualsThePackageTokenForToken) {
  for (const Json& one : cases_["texts"]) {
    std::string text;
    ASSERT_TRUE(absl::Base64Unescape(one["base64"].get<std::string>(), &text));
    const auto ids = one["ids"].get<Ids>();
    EXPECT_EQ(Encode(*tokenizer_, text), ids) << Quoted(text);
    EXPECT_EQ(Encode(*tokenizer_, text, SpecialTokens::kAdd), one["with_special"].get<Ids>());
    EXPECT_EQ(Decode(*tokenizer_, ids), one["decoded"].get<std::string>()) << Quoted(text);
  }
}

TEST_P(SentencePieceFixtureTest, AnyIdsDecodeAsInThePackage) {
  for (const Json& one : cases_["decodings"]) {
    EXPECT_EQ(Decode(*tokenizer_, one["ids"].get<Ids>()), one["decoded"].get<std::string>())
        << one["ids"].dump();
  }
}

// A stream goes on after a prompt: what comes is what the whole text has more than the prompt.
TEST_P(SentencePieceFixtureTest, StreamingContinuesThePrompt) {
  for (const Json& one : cases_["texts"]) {
    const auto ids = one["ids"].get<Ids>();
    for (size_t prompt = 1; prompt < ids.size(); prompt = prompt * 2 + 1) {
      StreamDecoder decoder;
      std::string text = Decode(*tokenizer_, Ids(ids.begin(), ids.begin() + prompt));
      // Before the first character ends, or shows, there is nothing to go on after.
      if (text.empty() || text.ends_with("\uFFFD")) continue;
      for (size_t i = prompt; i < ids.size(); ++i) {
        const std::string piece = decoder.Push(*tokenizer_->TokenBytes(ids[i]));
        ASSERT_TRUE(IsValidUtf8(piece));
        text += piece;
      }
      EXPECT_EQ(text + decoder.Finish(), one["decoded"].get<std::string>()) << prompt;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, SentencePieceFixtureTest,
                         testing::Values("llama", "unigram", "unused"));

// Any valid UTF-8 comes back: this model has a piece for every byte and keeps white space.
TEST(SentencePieceTest, DecodingGivesTheTextBack) {
  const auto seed = static_cast<uint32_t>(std::random_device()());
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const auto tokenizer = LoadFolder(FixtureFolder("llama"));
  for (int i = 0; i < 2000; ++i) {
    std::string bytes(random() % 60, '\0');
    for (char& byte : bytes) {
      byte = static_cast<char>(random() % 3 == 0 ? random() : "  \na1th."[random() % 8]);
    }
    ASSERT_EQ(Decode(*tokenizer, Encode(*tokenizer, bytes)), ReplaceInvalidUtf8(bytes));
  }
}

// No piece of this model goes beyond a word, so a text's tokens are the same wherever it stands: a
// sum of scores in float would soon choose others.
TEST(SentencePieceTest, LongTextsAreAsPreciseAsShortOnes) {
  const auto tokenizer = LoadFolder(FixtureFolder("unigram"));
  const auto path = std::filesystem::path(NIBBLE_FIXTURES) / "texts" / "evaluation.txt";
  const std::string text = *ReadTextFile(path, size_t{1} << 20);
  const Ids once = Encode(*tokenizer, text);
  std::string repeated;
  Ids expected;
  for (int i = 0; i < 20; ++i) {
    repeated += text;
    expected.insert(expected.end(), once.begin(), once.end());
  }
  EXPECT_TRUE(Encode(*tokenizer, repeated) == expected);
}

TEST(SentencePieceTest, TokensByNameAndById) {
  const auto tokenizer = LoadFolder(FixtureFolder("llama"));
  EXPECT_EQ(*tokenizer->TokenId("<unk>"), 0);
  EXPECT_EQ(*tokenizer->TokenId("<s>"), 1);
  EXPECT_EQ(*tokenizer->TokenId("</s>"), 2);
  EXPECT_EQ(*tokenizer->TokenId("<0x41>"), 3 + 0x41);
  EXPECT_EQ(*tokenizer->TokenBytes(3 + 0xE2), "\xE2");
  EXPECT_EQ(*tokenizer->TokenBytes(0), " \u2047 ");
  EXPECT_EQ(*tokenizer->TokenBytes(1), "<s>");
  const auto the = tokenizer->TokenId("▁the");
  ASSERT_TRUE(the.ok()) << the.status();
  EXPECT_EQ(*tokenizer->TokenBytes(*the), " the");
  EXPECT_EQ(tokenizer->TokenId("no such").status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(tokenizer->IsSpecial(1));
  EXPECT_FALSE(tokenizer->IsSpecial(0));
  EXPECT_FALSE(tokenizer->IsSpecial(*the));
  EXPECT_EQ(Decode(*tokenizer, {1, *the, 2}, DecodeSpecial::kSkip), "the");
  EXPECT_EQ(Decode(*tokenizer, {1, *the, 2}, DecodeSpecial::kKeep), "<s> the</s>");
  for (const int32_t id : {-1, tokenizer->vocab_size(), 1 << 30}) {
    EXPECT_EQ(tokenizer->TokenBytes(id).status().code(), absl::StatusCode::kOutOfRange);
    EXPECT_FALSE(tokenizer->IsSpecial(id));
    EXPECT_EQ(tokenizer->Decode({id}, DecodeSpecial::kSkip).status().code(),
              absl::StatusCode::kOutOfRange);
  }
}

// A folder that has the llama fixture's model, and other files.
class SentencePieceFolderTest : public testing::Test {
 protected:
  SentencePieceFolderTest() {
    model_ = *ReadTextFile(FixtureFolder("llama") / "tokenizer.model", size_t{1} << 20);
    Write("tokenizer.model", model_);
  }
  void Write(const std::string& name, std::string_view text) {
    std::ofstream(folder_.path() / name, std::ios::binary) << text;
  }
  absl::Status LoadStatus() { return Tokenizer::Load(folder_.path()).status(); }
  void ExpectRefused(std::string_view model, const std::string& message,
                     absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    Write("tokenizer.model", model);
    EXPECT_EQ(LoadStatus().code(), code) << LoadStatus();
    EXPECT_THAT(std::string(LoadStatus().message()), HasSubstr(message));
    EXPECT_THAT(std::string(LoadStatus().message()), HasSubstr("tokenizer.model"));
  }

  TempFolder folder_;
  std::string model_;
};

TEST_F(SentencePieceFolderTest, TheConfigSaysWhatIsAdded) {
  const Ids plain = Encode(*LoadFolder(folder_.path()), "the");
  const auto with = [&](std::string_view config) {
    Write("tokenizer_config.json", config);
    return Encode(*LoadFolder(folder_.path()), "the", SpecialTokens::kAdd);
  };
  EXPECT_THAT(plain, ElementsAre(testing::_));
  EXPECT_THAT(with("{}"), ElementsAre(1, plain[0]));
  EXPECT_THAT(with(R"({"add_bos_token": null})"), ElementsAre(1, plain[0]));
  EXPECT_THAT(with(R"({"add_bos_token": false})"), ElementsAre(plain[0]));
  EXPECT_THAT(with(R"({"add_eos_token": true})"), ElementsAre(1, plain[0], 2));
  Write("tokenizer_config.json", R"({"add_bos_token": 1})");
  EXPECT_THAT(std::string(LoadStatus().message()), HasSubstr("add_bos_token"));
}

TEST_F(SentencePieceFolderTest, AddedTokensAreCutOut) {
  const auto bare = LoadFolder(folder_.path());
  const int32_t next = bare->vocab_size();
  Write("added_tokens.json", StrCat(R"({"<s>": 1, "<one>": )", next + 1, "}"));
  Write("tokenizer_config.json",
        StrCat(R"({"added_tokens_decoder": {"1": {"content": "<s>", "special": true}, ")", next + 3,
               R"(": {"content": "<three>", "special": true, "lstrip": true}}})"));
  const auto tokenizer = LoadFolder(folder_.path());
  EXPECT_EQ(tokenizer->vocab_size(), next + 4);
  Ids expected = Encode(*bare, "the <s>");
  expected.push_back(next + 1);
  for (const int32_t id : Encode(*bare, " Lord")) expected.push_back(id);
  expected.push_back(next + 3);
  EXPECT_EQ(Encode(*tokenizer, "the <s><one> Lord  <three>"), expected);
  EXPECT_EQ(*tokenizer->TokenBytes(next + 1), "<one>");
  EXPECT_EQ(*tokenizer->TokenId("<three>"), next + 3);
  EXPECT_FALSE(tokenizer->IsSpecial(next + 1));
  EXPECT_TRUE(tokenizer->IsSpecial(next + 3));
  EXPECT_EQ(tokenizer->TokenBytes(next + 2).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(Decode(*tokenizer, {next + 1, next + 3}), "<one>");

  Write("added_tokens.json", StrCat(R"({"<two>": )", next + 3, "}"));
  EXPECT_EQ(LoadStatus().code(), absl::StatusCode::kInvalidArgument) << LoadStatus();
  Write("added_tokens.json", R"({"<two>": -1})");
  EXPECT_EQ(LoadStatus().code(), absl::StatusCode::kInvalidArgument) << LoadStatus();
}

TEST_F(SentencePieceFolderTest, TokenizerJsonGoesFirstIfItIsBuilt) {
  std::filesystem::copy(FixtureFolder("..") / "tokenizers" / "gpt2" / "tokenizer.json",
                        folder_.path());
  EXPECT_EQ(*LoadFolder(folder_.path())->TokenId("</s>"), 0);
  // As transformers converts LLaMA's.
  Write("tokenizer.json", R"({"normalizer": {"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "▁"}]}, "model": {"type": "BPE", "byte_fallback": true}})");
  EXPECT_EQ(*LoadFolder(folder_.path())->TokenId("</s>"), 2);
  Write("tokenizer.json", "{");
  EXPECT_THAT(std::string(LoadStatus().message()), HasSubstr("tokenizer.json"));
  std::filesystem::remove(folder_.path() / "tokenizer.json");
  std::filesystem::remove(folder_.path() / "tokenizer.model");
  EXPECT_EQ(LoadStatus().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(LoadStatus().message()),
              HasSubstr("neither tokenizer.json nor tokenizer.model"));
}

// Fields of protocol buffers' messages.
std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}
std::string Number(int field, uint64_t value) { return Varint(field << 3) + Varint(value); }
std::string Bytes(int field, std::string_view bytes) {
  return StrCat(Varint(field << 3 | 2), Varint(bytes.size()), bytes);
}
std::string Piece(std::string_view text, int type) {
  return Bytes(1, Bytes(1, text) + Number(3, type));
}
std::string Normalizer(std::string_view charsmap) { return Bytes(3, Bytes(2, charsmap)); }

TEST_F(SentencePieceFolderTest, WhatModelsLackOrHaveTwiceIsNamed) {
  const std::string unknown = Piece("<unk>", 2);
  Write("tokenizer.model", unknown);
  EXPECT_TRUE(LoadStatus().ok()) << LoadStatus();
  ExpectRefused("", "no unknown piece");
  ExpectRefused(unknown + Piece("?", 2), "two unknown pieces");
  ExpectRefused(unknown + Piece("a", 1) + Piece("a", 1), "\"a\" is there twice");
  ExpectRefused(unknown + Piece("a", 7), "type: found 7");
  ExpectRefused(unknown + Piece("", 1), "piece 1: found 0 bytes");
  ExpectRefused(unknown + Piece(std::string(1025, 'a'), 1), "piece 1: found 1025 bytes");
  ExpectRefused(unknown + Piece("\xff", 1), "expected UTF-8");
  ExpectRefused(unknown + Bytes(1, Bytes(1, "a") + std::string("\x15\0\0\xc0\x7f", 5)),
                "a finite number");
  ExpectRefused(unknown + Piece("<0x00>", 6), "without byte_fallback");
  ExpectRefused(unknown + Bytes(2, Number(35, 1)), "without the byte piece <0x00>");
  ExpectRefused(unknown + Number(2, 1), "wire type 0");
  ExpectRefused(unknown + "\x0b", "wire type 3");
  ExpectRefused(unknown + std::string(11, '\xff'), "more than 10 bytes");
  ExpectRefused(unknown + "\x0a\x7f", "expected 127 of a field");
  const auto kUnbuilt = absl::StatusCode::kUnimplemented;
  ExpectRefused(unknown + Bytes(2, Number(3, 4)), "model type 4", kUnbuilt);
  ExpectRefused(unknown + Bytes(2, Number(24, 1)), "treat_whitespace_as_suffix", kUnbuilt);
  ExpectRefused(unknown + Bytes(5, Bytes(2, "x")), "denormalizer", kUnbuilt);
}

TEST_F(SentencePieceFolderTest, BrokenCharsmaps) {
  const std::string unknown = Piece("<unk>", 2);
  for (const std::string& charsmap :
       {"\x04"s, "\x04\0\0\0"s, "\x04\0\0\0abcd"s, "\x04\0\0\0abcdx"s, "\x03\0\0\0abc\0"s,
        "\xfc\xff\xff\xff"s + "abcd\0"s, "\0\0\0\0\0"s}) {
    ExpectRefused(unknown + Normalizer(charsmap), "precompiled_charsmap");
  }
  // A double array that leads out of itself, or to a replacement that is not there: no rule, or
  // an empty one.
  const auto seed = static_cast<uint32_t>(std::random_device()());
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 200; ++i) {
    std::string charsmap = "\0\x04\0\0"s;
    for (int byte = 0; byte < 1024; ++byte) {
      charsmap += static_cast<char>(random() % 2 == 0 ? random() : 0);
    }
    Write("tokenizer.model", unknown + Normalizer(charsmap + "x\0"s));
    const auto tokenizer = LoadFolder(folder_.path());
    std::string text(256, '\0');
    for (char& byte : text) byte = static_cast<char>(random());
    EXPECT_TRUE(tokenizer->Encode(text, SpecialTokens::kNone).ok());
  }
}

// "a" becomes 100 kB.
TEST_F(SentencePieceFolderTest, TextDoesNotGrowBeyondMeasure) {
  std::string units(4 * 512, '\0');
  const auto set = [&](size_t unit, uint32_t value) {
    for (int i = 0; i < 4; ++i) units[4 * unit + i] = static_cast<char>(value >> (8 * i));
  };
  set(0, 256 << 10);                       // the root's children begin at 256
  set(256 ^ 'a', 'a' | 1 << 8 | 1 << 10);  // a leaf lies 1 further
  set((256 ^ 'a') ^ 1, 1u << 31);          // the replacement at 0
  Write("tokenizer.model",
        Piece("<unk>", 2) + Normalizer("\0\x08\0\0"s + units + std::string(100'000, 'b') + "\0"s));
  const auto tokenizer = LoadFolder(folder_.path());
  EXPECT_TRUE(tokenizer->Encode("b", SpecialTokens::kNone).ok());
  EXPECT_EQ(tokenizer->Encode("aaaa", SpecialTokens::kNone).status().code(),
            absl::StatusCode::kResourceExhausted);
}

// Every truncation, and damage everywhere: a status or a tokenizer that works.
TEST_F(SentencePieceFolderTest, DamagedFiles) {
  const auto seed = static_cast<uint32_t>(std::random_device()());
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  int refused = 0;
  const auto check = [&](const std::string& model) {
    Write("tokenizer.model", model);
    const auto tokenizer = Tokenizer::Load(folder_.path());
    refused += !tokenizer.ok();
    if (!tokenizer.ok()) return;
    EXPECT_TRUE((*tokenizer)->Encode("The Lord 粉\n", SpecialTokens::kAdd).ok());
  };
  for (size_t size = 0; size < model_.size(); size += 1 + random() % 40) {
    check(model_.substr(0, size));
  }
  EXPECT_GT(refused, 100);
  for (int i = 0; i < 500; ++i) {
    std::string model = model_;
    for (int flips = 0; flips < 3; ++flips)
      model[random() % model.size()] = static_cast<char>(random());
    check(model);
  }
  for (int i = 0; i < 200; ++i) {
    std::string noise(random() % 300, '\0');
    for (char& byte : noise) byte = static_cast<char>(random());
    check(noise);
  }
}

TEST_F(SentencePieceFolderTest, HugeFilesAreNotRead) {
  std::filesystem::resize_file(folder_.path() / "tokenizer.model", uintmax_t{1} << 40);
  EXPECT_EQ(LoadStatus().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(LoadStatus().message()), HasSubstr("bytes, expected at most"));
}

// A quadratic merge of a megabyte without a space would take hours.
TEST(SentencePieceTest, LongTextsEndSoon) {
  for (const char* name : {"llama", "unigram", "unused"}) {
    const auto tokenizer = LoadFolder(FixtureFolder(name));
    for (const std::string& unit : {"turningthe"s, "\n"s, " "s, "a"s, "▁"s}) {
      std::string text;
      while (text.size() < 1'000'000) text += unit;
      Encode(*tokenizer, text + "x");
    }
  }
}

}  // namespace
}  // namespace nibble
