#include "server/ops/names.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "tests/temp_folder.h"

namespace nibble {
namespace {

class NamesTest : public testing::Test {
 protected:
  NamesTest() : root_{folder_.path()} {
    EXPECT_TRUE(CreateFolders(root_).ok());
    Touch(root_.models() / "m" / "config.json");
    Touch(root_.artifacts() / "done" / "config.json");
    Touch(root_.artifacts() / "done" / "nibble.json");
    Touch(root_.artifacts() / "half" / "config.json");
    Touch(root_.corpora() / "c.txt");
    Touch(root_.corpora() / "c.jsonl");
    Touch(root_.corpora() / "c.bin");
    Touch(folder_.path() / "secret.txt");
  }
  static void Touch(const std::filesystem::path& file) {
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << "{}";
  }

  TempFolder folder_;
  DataRoot root_;
};

TEST_F(NamesTest, FindsModelsArtifactsAndCorpora) {
  EXPECT_EQ(FindModel(root_, "model", "m").value(), root_.models() / "m");
  EXPECT_EQ(FindModel(root_, "model", "done").value(), root_.artifacts() / "done");
  EXPECT_EQ(FindCorpus(root_, "corpus", "c.txt").value(), root_.corpora() / "c.txt");
  EXPECT_EQ(FindCorpus(root_, "corpus", "c.jsonl").value(), root_.corpora() / "c.jsonl");
}

TEST_F(NamesTest, UnknownAndUncommittedAreNotFound) {
  for (const char* name : {"M", "half", "unknown", "c.txt"}) {
    EXPECT_EQ(FindModel(root_, "model", name).status().code(), absl::StatusCode::kNotFound) << name;
  }
  EXPECT_EQ(FindCorpus(root_, "corpus", "d.txt").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(NamesTest, NamesThatLeaveTheFolderAreInvalid) {
  const std::string long_name(129, 'a');
  for (const std::string& name :
       {std::string(""), std::string("."), std::string(".."), std::string("../secret.txt"),
        std::string("/etc/passwd"), std::string("m/../m"), std::string(".hidden.txt"),
        std::string("-m"), std::string("m\n"), std::string("m\0x", 3), std::string("\xc3\xa9"),
        std::string("a b"), long_name}) {
    for (const absl::Status& status : {CheckName("f", name), FindModel(root_, "f", name).status(),
                                       FindCorpus(root_, "f", name).status()}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
      EXPECT_EQ(std::string(status.message()).rfind("f: found \"", 0), 0u) << status;
    }
  }
  EXPECT_TRUE(CheckName("f", std::string(128, 'a')).ok());
  EXPECT_TRUE(CheckName("f", "SmolLM2-135M_v1.0").ok());
}

TEST_F(NamesTest, ACorpusOfAnotherKindIsInvalid) {
  EXPECT_EQ(FindCorpus(root_, "corpus", "c.bin").status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
