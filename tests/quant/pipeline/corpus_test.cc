#include "quant/pipeline/corpus.h"

#include <gmock/gmock.h>

#include <fstream>

#include "quant/base/strings.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

class CorpusTest : public testing::Test {
 protected:
  std::filesystem::path Write(const std::string& name, const std::string& content) {
    std::ofstream(folder_.path() / name, std::ios::binary) << content;
    return folder_.path() / name;
  }
  TempFolder folder_;
};

TEST_F(CorpusTest, ATextIsTakenAsItIs) {
  const std::string text = " a\r\n\n= b =\n";
  EXPECT_EQ(ReadCorpus(Write("c.txt", text), 0, 0).value(), text);
  EXPECT_EQ(ReadCorpus(Write("c.txt", text), 1, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadCorpus(Write("c.csv", text), 0, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CorpusTest, LinesAreJoinedByOneSpaceAndCountedFromOne) {
  const auto file = Write("c.jsonl", R"({"text": "one\n"})"
                                     "\n\n"
                                     R"({"url": "x", "text": "two"})"
                                     "\r\n"
                                     R"({"text": "three"})");
  EXPECT_EQ(ReadCorpus(file, 0, 0).value(), "one\n two three");
  EXPECT_EQ(ReadCorpus(file, 1, 2).value(), "one\n two");
  EXPECT_EQ(ReadCorpus(file, 2, 2).value(), "two");
  EXPECT_EQ(ReadCorpus(file, 3, 0).value(), "three");
  const auto beyond = ReadCorpus(file, 2, 4).status();
  EXPECT_EQ(beyond.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(beyond.message(), HasSubstr("corpus.last_text: found 4, expected at most 3"));
  EXPECT_THAT(ReadCorpus(file, 5, 0).status().message(),
              HasSubstr("corpus.first_text: found 5, expected at most 3"));
}

TEST_F(CorpusTest, ALineWithoutTextIsNamed) {
  const auto status =
      ReadCorpus(Write("c.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n"), 0, 0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("c.jsonl line 2"));
}

TEST_F(CorpusTest, WindowsDoNotOverlapAndTheLastPartIsDropped) {
  ASSERT_TRUE(WriteTinyLlama({}, folder_.path() / "tiny").ok());
  const auto tokenizer = Tokenizer::Load(folder_.path() / "tiny").value();
  const std::string text = "abcdefghijk";  // one token a byte
  const int64_t vocab = tokenizer->vocab_size();
  const auto windows = CutWindows(*tokenizer, vocab, text, 4, 0).value();
  ASSERT_EQ(windows.size(), 2u);
  const std::vector<int32_t> tokens = tokenizer->Encode(text, SpecialTokens::kAdd).value();
  EXPECT_EQ(windows[0], std::vector<int32_t>(tokens.begin(), tokens.begin() + 4));
  EXPECT_EQ(windows[1], std::vector<int32_t>(tokens.begin() + 4, tokens.begin() + 8));
  EXPECT_EQ(CutWindows(*tokenizer, vocab, text, 4, 1).value().size(), 1u);
  EXPECT_THAT(CutWindows(*tokenizer, vocab, text, 4, 3).status().message(),
              HasSubstr("windows: found text for 2 of 4 tokens, expected at least 3"));
  EXPECT_FALSE(CutWindows(*tokenizer, vocab, "abc", 4, 0).ok());
}

TEST_F(CorpusTest, ATokenThatTheModelDoesNotHaveIsRefused) {
  ASSERT_TRUE(WriteTinyLlama({}, folder_.path() / "tiny").ok());
  const auto tokenizer = Tokenizer::Load(folder_.path() / "tiny").value();
  const int32_t last = tokenizer->Encode("z", SpecialTokens::kNone).value().back();
  EXPECT_TRUE(CutWindows(*tokenizer, last + 1, "zzzz", 2, 1).ok());
  const absl::Status status = CutWindows(*tokenizer, last, "zzzz", 2, 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr(StrCat("token id ", last)));
}

}  // namespace
}  // namespace nibble
