// What goes wrong while a job runs: a clear message, and nothing left once it is given up.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/resource.h>

#include <fstream>
#include <new>

#include "quant/pipeline/pipeline.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class FaultTest : public testing::Test {
 protected:
  FaultTest() {
    EXPECT_TRUE(WriteTinyLlama({.layers = 2}, checkpoint_).ok());
    spec_.weights = WeightSpec{.format = Format::kInt8, .group_size = 32};
    spec_.activations = ActivationSpec{.format = Format::kE4M3};
    spec_.method = Method::kRtn;
  }
  // `fault` is called at each step.
  absl::Status Run(const std::function<void(const Progress&)>& fault = [](const Progress&) {}) {
    return QuantizeModel(spec_, checkpoint_, artifact_,
                         [&](const Progress& progress) {
                           fault(progress);
                           return absl::OkStatus();
                         })
        .status();
  }
  void ExpectNothingLeftOnceGivenUp() {
    EXPECT_FALSE(std::filesystem::exists(artifact_));
    EXPECT_TRUE(RemoveStaging(artifact_).ok());
    EXPECT_TRUE(!std::filesystem::exists(artifact_.parent_path()) ||
                std::filesystem::is_empty(artifact_.parent_path()));
  }

  TempFolder folder_;
  const std::filesystem::path checkpoint_ = folder_.path() / "tiny";
  const std::filesystem::path artifact_ = folder_.path() / "artifacts" / "out";
  QuantizeSpec spec_;
};

// No file of this process may grow beyond `bytes` while it lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, handler_);
  }

 private:
  sighandler_t handler_;
  rlimit before_;
};

TEST_F(FaultTest, ADiskWithoutRoomForAShard) {
  absl::Status status;
  {
    const FileSizeLimit limit(20'000);  // a layer has 36'864 weights of a byte
    status = Run();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr(StagingFolder(artifact_).string()), HasSubstr("File too large")));
  ExpectNothingLeftOnceGivenUp();
  EXPECT_TRUE(Run().ok());
}

TEST_F(FaultTest, ADiskWithoutRoomForTheRecord) {
  absl::Status status;
  {
    std::optional<FileSizeLimit> limit;
    status = Run([&](const Progress& progress) {
      if (progress.phase == Phase::kWriting) limit.emplace(100);
    });
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  // The layers are safe: with room again the job ends without doing one of them again.
  int quantized = 0;
  EXPECT_TRUE(Run([&](const Progress& progress) {
                quantized += progress.phase == Phase::kQuantizing ? 1 : 0;
              }).ok());
  EXPECT_EQ(quantized, 0);
}

TEST_F(FaultTest, ATruncatedCheckpoint) {
  std::filesystem::resize_file(checkpoint_ / "model.safetensors", 100'000);
  const absl::Status status = Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr((checkpoint_ / "model.safetensors").string()));
  EXPECT_EQ(CheckQuantizeSpec(spec_, checkpoint_), status);
  ExpectNothingLeftOnceGivenUp();
}

// Overwrites bytes of the checkpoint's file, counted from its end.
void Damage(const std::filesystem::path& file, int64_t from_end, const std::string& bytes) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(-from_end, std::ios::end);
  stream << bytes;
}

TEST_F(FaultTest, AShardWhoseHeaderIsCorrupt) {
  const auto shard = checkpoint_ / "model.safetensors";
  Damage(shard, static_cast<int64_t>(std::filesystem::file_size(shard)) - 20, "\xff\xff\xff");
  const absl::Status status = Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr(shard.string()));
  ExpectNothingLeftOnceGivenUp();
}

TEST_F(FaultTest, AShardWithAWeightThatIsNoNumber) {
  // Every f32 of the last 40'000 bytes: inside the last layer, so the first is finished by then.
  std::string nans;
  for (int i = 0; i < 10'000; ++i) nans += std::string("\0\0\xc0\x7f", 4);
  Damage(checkpoint_ / "model.safetensors", 40'000, nans);
  int layers = 0;
  const absl::Status status =
      Run([&](const Progress& progress) { layers += progress.finished != nullptr ? 1 : 0; });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(status.message(), HasSubstr("model.layers.1."));
  EXPECT_EQ(layers, 1);
  ExpectNothingLeftOnceGivenUp();
}

TEST_F(FaultTest, AShardThatIsGone) {
  std::filesystem::rename(checkpoint_ / "model.safetensors",
                          checkpoint_ / "model-00001-of-00001.safetensors");
  const absl::Status status = Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("model.safetensors"));
  ExpectNothingLeftOnceGivenUp();
}

TEST_F(FaultTest, ADeviceOutOfMemory) {
  int steps = 0;
  const absl::Status status = Run([&](const Progress& progress) {
    if (progress.phase == Phase::kQuantizing && ++steps == 3) {
      // As LibTorch's allocators do.
      throw c10::OutOfMemoryError({"Allocate", __FILE__, __LINE__},
                                  "CUDA out of memory. Tried to allocate 2.00 GiB.");
    }
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "CUDA out of memory. Tried to allocate 2.00 GiB.");
  ExpectNothingLeftOnceGivenUp();
}

TEST_F(FaultTest, AHostOutOfMemory) {
  const absl::Status status = Run([](const Progress&) { throw std::bad_alloc(); });
  EXPECT_EQ(status, absl::ResourceExhaustedError("out of memory"));
  ExpectNothingLeftOnceGivenUp();
}

}  // namespace
}  // namespace nibble
