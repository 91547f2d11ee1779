#include "server/transfer/upload_store.h"

#include <gmock/gmock.h>

#include <fstream>
#include <sstream>

#include "quant/base/sha256.h"
#include "quant/base/strings.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::string ReadFile(const std::filesystem::path& path) {
  std::stringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  return content.str();
}

class UploadStoreTest : public testing::Test {
 protected:
  UploadStoreTest() : root_{folder_.path() / "root"} {
    EXPECT_TRUE(CreateFolders(root_).ok());
    EXPECT_TRUE(WriteTinyLlama({}, source_).ok());
    spec_ = {.id = "u1", .corpus = false, .name = "tiny", .files = {}};
    for (const auto& file : std::filesystem::directory_iterator(source_)) {
      const std::string name = file.path().filename().string();
      contents_[name] = ReadFile(file.path());
      spec_.files.push_back(
          {name, static_cast<int64_t>(contents_[name].size()), Sha256(contents_[name])});
    }
    store_ = MakeStore(0);
  }
  std::unique_ptr<UploadStore> MakeStore(int64_t quota) {
    return std::make_unique<UploadStore>(UploadStore::Options{.root = root_, .quota_bytes = quota},
                                         names_);
  }
  absl::Status SendAll(Upload& upload, size_t piece) {
    const std::vector<UploadProgress> progress = upload.progress();
    for (size_t i = 0; i < spec_.files.size(); ++i) {
      const std::string& name = spec_.files[i].path;
      std::string_view rest = std::string_view(contents_[name]).substr(progress[i].received);
      if (absl::Status s = upload.StartFile(name, progress[i].received); !s.ok()) return s;
      for (; !rest.empty(); rest.remove_prefix(std::min(piece, rest.size()))) {
        if (absl::Status s = upload.Append(rest.substr(0, piece)); !s.ok()) return s;
      }
    }
    return absl::OkStatus();
  }
  std::string MessageOf(const UploadSpec& spec, absl::StatusCode code) {
    const absl::Status status = store_->Open(spec).status();
    EXPECT_EQ(status.code(), code) << status;
    return std::string(status.message());
  }

  TempFolder folder_;
  std::filesystem::path source_ = folder_.path() / "source";
  DataRoot root_;
  absl::Mutex names_;
  UploadSpec spec_;
  std::map<std::string, std::string> contents_;
  std::unique_ptr<UploadStore> store_;
};

TEST_F(UploadStoreTest, ACommitMakesTheModelAppearWhole) {
  auto upload = store_->Open(spec_).value();
  ASSERT_TRUE(SendAll(*upload, 1000).ok());
  EXPECT_FALSE(FindModel(root_, "model", "tiny").ok());
  ASSERT_TRUE(upload->Commit().ok());
  for (const auto& [name, content] : contents_) {
    EXPECT_EQ(ReadFile(root_.models() / "tiny" / name), content) << name;
  }
  EXPECT_TRUE(std::filesystem::is_empty(root_.uploads()));
  // Nothing but its files.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(root_.models() / "tiny"), {}),
            static_cast<int64_t>(contents_.size()));
  upload.reset();
  EXPECT_THAT(MessageOf(spec_, absl::StatusCode::kAlreadyExists), HasSubstr("tiny"));
}

TEST_F(UploadStoreTest, WhatHasComeIsKeptOverStreamsAndRestarts) {
  {
    auto upload = store_->Open(spec_).value();
    ASSERT_TRUE(upload->StartFile("model.safetensors", 0).ok());
    ASSERT_TRUE(upload->Append(contents_["model.safetensors"].substr(0, 777)).ok());
    ASSERT_TRUE(upload->StartFile("config.json", 0).ok());
    ASSERT_TRUE(upload->Append(contents_["config.json"]).ok());
    // One stream at a time.
    EXPECT_THAT(MessageOf(spec_, absl::StatusCode::kAborted), HasSubstr("u1"));
  }
  store_ = MakeStore(0);
  UploadSpec other = spec_;
  other.files[0].size += 1;
  EXPECT_THAT(MessageOf(other, absl::StatusCode::kAlreadyExists), HasSubstr("upload_id"));
  auto upload = store_->Open(spec_).value();
  for (size_t i = 0; i < spec_.files.size(); ++i) {
    const UploadProgress progress = upload->progress()[i];
    const std::string& name = spec_.files[i].path;
    EXPECT_EQ(progress.complete, name == "config.json");
    const int64_t expected = progress.complete             ? spec_.files[i].size
                             : name == "model.safetensors" ? 777
                                                           : 0;
    EXPECT_EQ(progress.received, expected) << name;
  }
  const absl::Status wrong = upload->StartFile("model.safetensors", 0);
  EXPECT_EQ(wrong.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(wrong.message(), HasSubstr("file.offset: found 0, expected 777"));
  EXPECT_EQ(upload->Commit().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(SendAll(*upload, 4096).ok());
  ASSERT_TRUE(upload->Commit().ok());
  EXPECT_EQ(ReadFile(root_.models() / "tiny" / "model.safetensors"),
            contents_["model.safetensors"]);
}

TEST_F(UploadStoreTest, AnotherSumDropsTheFileAndItMayComeAgain) {
  auto upload = store_->Open(spec_).value();
  std::string flipped = contents_["config.json"];
  flipped[3] ^= 1;
  ASSERT_TRUE(upload->StartFile("config.json", 0).ok());
  const absl::Status status = upload->Append(flipped);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("config.json"));
  EXPECT_TRUE(SendAll(*upload, 100).ok());
  EXPECT_TRUE(upload->Commit().ok());
}

TEST_F(UploadStoreTest, AnEmptyFileNeedsNoSending) {
  contents_["NOTICE"] = "";
  spec_.files.push_back({"NOTICE", 0, Sha256("")});
  auto upload = store_->Open(spec_).value();
  for (const UploadFile& file : spec_.files) {
    if (file.size == 0) continue;
    ASSERT_TRUE(upload->StartFile(file.path, 0).ok());
    ASSERT_TRUE(upload->Append(contents_[file.path]).ok());
  }
  const absl::Status committed = upload->Commit();
  ASSERT_TRUE(committed.ok()) << committed;
  EXPECT_TRUE(std::filesystem::exists(root_.models() / "tiny" / "NOTICE"));
}

TEST_F(UploadStoreTest, AnEmptyFileIsHeldAgainstItsSum) {
  spec_.files = {{"config.json", 0, Sha256("x")}, {"model.safetensors", 0, Sha256("")}};
  const absl::Status committed = store_->Open(spec_).value()->Commit();
  EXPECT_EQ(committed.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(committed.message(), HasSubstr("config.json: found sha256"));
}

TEST_F(UploadStoreTest, MoreThanTheSizeIsRefused) {
  auto upload = store_->Open(spec_).value();
  ASSERT_TRUE(upload->StartFile("config.json", 0).ok());
  EXPECT_EQ(upload->Append(contents_["config.json"] + "x").code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(upload->StartFile("other", 0).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(UploadStoreTest, QuotaIsKnownAtTheStart) {
  store_ = MakeStore(1000);
  EXPECT_THAT(MessageOf(spec_, absl::StatusCode::kResourceExhausted), HasSubstr("quota"));
  EXPECT_TRUE(std::filesystem::is_empty(root_.uploads()));
  store_ = MakeStore(int64_t{1} << 30);
  EXPECT_TRUE(store_->Open(spec_).ok());
  EXPECT_GT(store_->QuotaLeft().value(), 0);
}

// Each alone would fit.
TEST_F(UploadStoreTest, StreamsShareTheQuotaThatIsLeft) {
  int64_t size = 0;
  for (const UploadFile& file : spec_.files) size += file.size;
  store_ = MakeStore(size * 3 / 2);
  UploadSpec other = spec_;
  other.id = "u2";
  other.name = "other";
  {
    auto upload = store_->Open(spec_).value();
    EXPECT_THAT(MessageOf(other, absl::StatusCode::kResourceExhausted),
                HasSubstr(StrCat("other uploads will fill ", size)));
    // What has come is on the disk and not kept twice.
    ASSERT_TRUE(SendAll(*upload, 1000).ok());
    EXPECT_THAT(MessageOf(other, absl::StatusCode::kResourceExhausted),
                HasSubstr("other uploads will fill 0"));
    ASSERT_TRUE(upload->Discard().ok());
  }
  EXPECT_TRUE(store_->Open(other).ok());
}

TEST_F(UploadStoreTest, WhatIsNoModelIsNotCommitted) {
  for (auto& file : spec_.files) {
    if (file.path != "model.safetensors") continue;
    contents_[file.path] = "not tensors";
    file.size = 11;
    file.sha256 = Sha256("not tensors");
  }
  auto upload = store_->Open(spec_).value();
  ASSERT_TRUE(SendAll(*upload, 100).ok());
  EXPECT_FALSE(upload->Commit().ok());
  EXPECT_FALSE(FindModel(root_, "model", "tiny").ok());
  EXPECT_TRUE(std::filesystem::is_empty(root_.uploads())) << "kept what can't be committed";
}

TEST_F(UploadStoreTest, WhatTheServerCanNotShowIsNotCommitted) {
  std::filesystem::path checked;
  UploadStore store({.root = root_,
                     .check_model =
                         [&](const std::filesystem::path& folder) {
                           checked = folder;
                           return absl::InvalidArgumentError("spec: found nothing");
                         }},
                    names_);
  auto upload = store.Open(spec_).value();
  ASSERT_TRUE(SendAll(*upload, 1000).ok());
  EXPECT_THAT(upload->Commit().message(), HasSubstr("spec: found nothing"));
  EXPECT_EQ(checked, root_.uploads() / "u1");
  EXPECT_FALSE(FindModel(root_, "model", "tiny").ok());
  EXPECT_TRUE(std::filesystem::is_empty(root_.uploads()));
}

// As a crash or a full disk leaves it.
TEST_F(UploadStoreTest, AnUploadWithoutItsSpecBeginsAnew) {
  { auto upload = store_->Open(spec_).value(); }
  const std::filesystem::path folder = root_.uploads() / "u1";
  std::filesystem::rename(folder / ".upload.json", folder / ".upload.json.new");
  std::filesystem::resize_file(folder / ".upload.json.new", 3);
  std::ofstream(folder / "config.json.part") << "{";
  auto upload = store_->Open(spec_).value();
  ASSERT_TRUE(SendAll(*upload, 1000).ok());
  EXPECT_TRUE(upload->Commit().ok());
}

TEST_F(UploadStoreTest, ACorpusIsOneFile) {
  const UploadSpec corpus = {
      .id = "u2", .corpus = true, .name = "c.txt", .files = {{"c.txt", 5, Sha256("hello")}}};
  auto upload = store_->Open(corpus).value();
  ASSERT_TRUE(upload->StartFile("c.txt", 0).ok());
  ASSERT_TRUE(upload->Append("hello").ok());
  ASSERT_TRUE(upload->Commit().ok());
  EXPECT_EQ(ReadFile(root_.corpora() / "c.txt"), "hello");
  EXPECT_TRUE(std::filesystem::is_empty(root_.uploads()));
}

TEST_F(UploadStoreTest, BadSpecsAreRefusedByField) {
  const auto refuse = [&](const std::function<void(UploadSpec&)>& change,
                          const std::string& words) {
    UploadSpec spec = spec_;
    change(spec);
    EXPECT_THAT(MessageOf(spec, absl::StatusCode::kInvalidArgument), HasSubstr(words));
  };
  refuse([](auto& s) { s.id = "../u"; }, "upload_id");
  refuse([](auto& s) { s.name = "/etc"; }, "model");
  refuse([](auto& s) { s.files.clear(); }, "files: found 0");
  refuse([](auto& s) { s.files[0].path = "../x"; }, "files.path");
  refuse([](auto& s) { s.files[0].path = s.files[1].path; }, "files.path");
  refuse([](auto& s) { s.files[0].size = -1; }, "files.size");
  refuse([](auto& s) { s.files[0].size = s.files[1].size = INT64_MAX; }, "files.size");
  refuse([](auto& s) { s.files[0].sha256 = "abc"; }, "files.sha256");
  refuse([](auto& s) { std::erase_if(s.files, [](auto& f) { return f.path == "config.json"; }); },
         "no config.json");
  refuse(
      [](auto& s) {
        s.corpus = true;
        s.name = "c.csv";
      },
      "corpus");
}

TEST_F(UploadStoreTest, WhatIsNotResumedInTimeIsRemoved) {
  { auto upload = store_->Open(spec_).value(); }
  const auto old = std::filesystem::file_time_type::clock::now() - std::chrono::hours(25);
  for (const auto& file : std::filesystem::directory_iterator(root_.uploads() / "u1")) {
    std::filesystem::last_write_time(file, old);
  }
  std::filesystem::last_write_time(root_.uploads() / "u1", old);
  ASSERT_TRUE(store_->Sweep().ok());
  EXPECT_TRUE(std::filesystem::is_empty(root_.uploads()));
}

}  // namespace
}  // namespace nibble
