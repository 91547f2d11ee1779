// tokenizer.json files that are broken, hostile, or of a kind that is not built.
#include <gmock/gmock.h>

#include <fstream>

#include "quant/base/strings.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/tokenizer/tokenizer.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnbuilt = absl::StatusCode::kUnimplemented;

// Three letters and two merges.
Json Small() {
  return Json::parse(R"({
    "added_tokens": [{"id": 5, "content": "<s>", "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4},
      "merges": [["a", "b"], ["ab", "c"]]}
  })");
}

class HostileTokenizerTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Tokenizer>> Load(std::string_view text) {
    std::ofstream(folder_.path() / "tokenizer.json", std::ios::binary) << text;
    return Tokenizer::Load(folder_.path());
  }
  // Small() with the value at a JSON pointer replaced.
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadChanged(const std::string& pointer,
                                                         const Json& value) {
    Json json = Small();
    json[Json::json_pointer(pointer)] = value;
    return Load(json.dump());
  }
  void ExpectRefused(const std::string& pointer, const Json& value, absl::StatusCode code,
                     const std::string& message) {
    const absl::Status status = LoadChanged(pointer, value).status();
    EXPECT_EQ(status.code(), code) << pointer << " " << value.dump().substr(0, 200) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message)) << pointer;
  }

  TempFolder folder_;
};

TEST_F(HostileTokenizerTest, TheSmallOneWorks) {
  const auto tokenizer = Load(Small().dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 6);
  EXPECT_THAT(*(*tokenizer)->Encode("abcab<s>ca", SpecialTokens::kAdd),
              ElementsAre(5, 4, 3, 5, 2, 0));
}

// The package decodes "ï" through the byte alphabet, to one invalid byte; we give back what was
// encoded.
TEST_F(HostileTokenizerTest, AddedTokensDecodeToTheirContent) {
  const auto tokenizer = LoadChanged("/added_tokens/0/content", "naïve");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->TokenBytes(5), "naïve");
}

TEST_F(HostileTokenizerTest, MissingAndBrokenFiles) {
  EXPECT_EQ(Tokenizer::Load(folder_.path()).status().code(), absl::StatusCode::kNotFound);
  for (const char* text : {"", "{}", "[]", "{\"model\":", "nul", "{\"model\":{},\"model\":{}}"}) {
    EXPECT_EQ(Load(text).status().code(), kInvalid) << text;
  }
  EXPECT_THAT(std::string(Load("{\"a\":" + std::string(1'000'000, '[')).status().message()),
              HasSubstr("nested deeper"));
  std::string many = "[0";
  for (int i = 0; i < 5'000'000; ++i) many += ",0";
  EXPECT_THAT(std::string(Load(many + "]").status().message()), HasSubstr("more than"));
}

TEST_F(HostileTokenizerTest, WhatIsNotBuiltIsNamed) {
  ExpectRefused("/normalizer", {{"type", "NFC"}}, kUnbuilt, "\"NFC\"");
  ExpectRefused("/pre_tokenizer", {{"type", "Metaspace"}}, kUnbuilt, "\"Metaspace\"");
  ExpectRefused("/pre_tokenizer", {{"type", "Digits"}}, kUnbuilt, "ByteLevel");
  ExpectRefused("/pre_tokenizer",
                {{"type", "Split"}, {"pattern", {{"String", "x"}}}, {"behavior", "Contiguous"}},
                kUnbuilt, "\"Contiguous\"");
  ExpectRefused("/post_processor", {{"type", "BertProcessing"}}, kUnbuilt, "\"BertProcessing\"");
  ExpectRefused("/decoder", {{"type", "WordPiece"}}, kUnbuilt, "\"WordPiece\"");
  ExpectRefused("/model/type", "Unigram", kUnbuilt, "\"Unigram\"");
  ExpectRefused("/model/byte_fallback", true, kUnbuilt, "byte_fallback");
  ExpectRefused("/model/dropout", 0.1, kUnbuilt, "dropout");
  ExpectRefused("/model/end_of_word_suffix", "</w>", kUnbuilt, "</w>");
}

TEST_F(HostileTokenizerTest, BrokenVocabularies) {
  ExpectRefused("/model/vocab", Json::array(), kInvalid, "vocab");
  ExpectRefused("/model/vocab/a", -1, kInvalid, "found -1");
  ExpectRefused("/model/vocab/a", "0", kInvalid, "found \"0\"");
  ExpectRefused("/model/vocab/a", 1, kInvalid, "one token an id");
  // An id that would ask for gigabytes.
  ExpectRefused("/model/vocab/a", 2'000'000'000, kInvalid, "found 2000000000");
  ExpectRefused("/model/unk_token", "<unk>", kInvalid, "<unk>: found nothing");
}

TEST_F(HostileTokenizerTest, BrokenMerges) {
  ExpectRefused("/model/merges", nullptr, kInvalid, "merges: found nothing");
  ExpectRefused("/model/merges/0", "a", kInvalid, "expected two tokens");
  ExpectRefused("/model/merges/0", {"a", "b", "c"}, kInvalid, "expected two tokens");
  ExpectRefused("/model/merges/0", {"a", 7}, kInvalid, "expected two tokens");
  ExpectRefused("/model/merges/0", {"a", "\u6f22"}, kInvalid, "expected two tokens");
  ExpectRefused("/model/merges/0", {"c", "c"}, kInvalid, "merge 0: found \"c\" and \"c\"");
  // A merge gives what both halves spell, so that no list of merges can go in a circle; a giant
  // half is a token that the vocabulary lacks.
  ExpectRefused("/model/merges/0", {std::string(1 << 20, 'a'), "b"}, kInvalid, "merge 0: found");
}

TEST_F(HostileTokenizerTest, RepeatedAndReorderedMergesEnd) {
  const auto tokenizer =
      LoadChanged("/model/merges", Json::array({{"ab", "c"}, {"a", "b"}, {"a", "b"}, {"ab", "c"}}));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("abcab", SpecialTokens::kNone), ElementsAre(4, 3));
}

TEST_F(HostileTokenizerTest, BrokenAddedTokens) {
  ExpectRefused("/added_tokens/0/content", "", kInvalid, "empty");
  ExpectRefused("/added_tokens/0/content", "a", kInvalid, "expected 0 as in the vocabulary");
  ExpectRefused("/added_tokens/0/id", 4, kInvalid, "one token an id");
  ExpectRefused("/added_tokens/0/id", -4, kInvalid, "found -4");
  ExpectRefused("/added_tokens/0/lstrip", "yes", kInvalid, "found \"yes\"");
  const Json token = Small()["added_tokens"][0];
  ExpectRefused("/added_tokens", Json::array({token, token}), kInvalid, "one token an id");
}

TEST_F(HostileTokenizerTest, BrokenPostProcessors) {
  ExpectRefused("/post_processor/single", Json::array(), kInvalid, "one Sequence");
  ExpectRefused("/post_processor/special_tokens", Json::object(), kInvalid, "<s>: found nothing");
  ExpectRefused("/post_processor/special_tokens/<s>/ids", {6}, kInvalid, "found 6");
  // Ids 5 to 8 stand for nothing then; "<s>" is still added as 5.
  ExpectRefused("/added_tokens/0/id", 9, kInvalid, "found 5, expected the id of a token");
  const Json text = {{"Sequence", {{"id", "A"}}}};
  ExpectRefused("/post_processor/single", Json::array({text, text}), kInvalid, "one Sequence");
}

Json SplitBy(const std::string& regex) {
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"},
             {"pattern", {{"Regex", regex}}},
             {"behavior", "Isolated"},
             {"invert", false}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
}

TEST_F(HostileTokenizerTest, BrokenRegularExpressions) {
  ExpectRefused("/pre_tokenizer", SplitBy("(a"), kInvalid, "does not compile");
  ExpectRefused("/pre_tokenizer", SplitBy("a)"), kInvalid, "does not compile");
  ExpectRefused("/pre_tokenizer", SplitBy("[z-a]"), kInvalid, "does not compile");
  ExpectRefused("/pre_tokenizer", SplitBy("\\p{Nonsense}"), kInvalid, "does not compile");
  ExpectRefused("/pre_tokenizer", SplitBy("(((a{999}){999}){999}){999}"), kInvalid,
                "does not compile");
  ExpectRefused("/pre_tokenizer", SplitBy(std::string(5000, '(')), kInvalid, "does not compile");
  ExpectRefused("/pre_tokenizer", SplitBy(std::string(10'000, 'a')), kInvalid, "10000 bytes");
  ExpectRefused("/pre_tokenizer", SplitBy("a*"), kInvalid, "match the empty text");
  ExpectRefused("/pre_tokenizer", SplitBy(""), kInvalid, "match the empty text");
  ExpectRefused("/pre_tokenizer", SplitBy("\\"), kUnbuilt, "not built");
}

TEST_F(HostileTokenizerTest, ExponentialRegularExpressionsAreStopped) {
  const auto tokenizer = LoadChanged("/pre_tokenizer", SplitBy("(a|aa)+\\d"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode(std::string(200, 'a'), SpecialTokens::kNone).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(HostileTokenizerTest, DeepSequencesAreRefused) {
  Json nested = Small()["pre_tokenizer"];
  for (int i = 0; i < 20; ++i) {
    nested = {{"type", "Sequence"}, {"pretokenizers", Json::array({nested})}};
  }
  ExpectRefused("/pre_tokenizer", nested, kInvalid, "nested deeper");
}

TEST_F(HostileTokenizerTest, RemovedPiecesAndLiteralPatterns) {
  Json split = SplitBy("x");
  split["pretokenizers"][0]["pattern"] = {{"String", "."}};
  split["pretokenizers"][0]["behavior"] = "Removed";
  const auto removed = LoadChanged("/pre_tokenizer", split);
  ASSERT_TRUE(removed.ok()) << removed.status();
  EXPECT_THAT(*(*removed)->Encode("a.b.ab", SpecialTokens::kNone), ElementsAre(0, 1, 3));
  split["pretokenizers"][0]["pattern"] = {{"Regex", "ab|c"}};
  split["pretokenizers"][0]["invert"] = true;
  const auto kept = LoadChanged("/pre_tokenizer", split);
  ASSERT_TRUE(kept.ok()) << kept.status();
  EXPECT_THAT(*(*kept)->Encode("aabccb", SpecialTokens::kNone), ElementsAre(3, 2, 2));
}

// Every one-byte change of the file loads or is refused; what loads still encodes.
TEST_F(HostileTokenizerTest, SurvivesFlippedBytes) {
  const std::string good = Small().dump();
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 1);
    const auto tokenizer = Load(bad);
    if (!tokenizer.ok()) continue;
    const auto ids = (*tokenizer)->Encode("abc abcab <s>", SpecialTokens::kAdd);
    ASSERT_TRUE(ids.ok()) << bad;
    EXPECT_TRUE((*tokenizer)->Decode(*ids, DecodeSpecial::kKeep).ok()) << bad;
  }
}

}  // namespace
}  // namespace nibble
