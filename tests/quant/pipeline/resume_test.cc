// Jobs that are interrupted: the next attempt goes on from the finished layers and makes the same
// files, and never from what is not its own or damaged.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <random>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "quant/pipeline/pipeline.h"
#include "tests/fixtures/artifacts.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int64_t kLayers = 4;

class ResumeTest : public testing::Test {
 protected:
  ResumeTest() {
    EXPECT_TRUE(WriteTinyLlama({.layers = kLayers}, checkpoint_).ok());
    WriteCorpus("word");
    spec_.weights = WeightSpec{.format = Format::kE2M1, .group_size = 32};
    spec_.activations = ActivationSpec{.format = Format::kE4M3};
    spec_.lorc_rank = 2;
    spec_.exclude = {"model.layers.1.*"};
    spec_.calibration = {.corpus = corpus_, .windows = 8, .window_tokens = 64};
  }

  void WriteCorpus(const std::string& word) const {
    std::ofstream corpus(corpus_);
    for (int i = 0; i < 600; ++i) corpus << word << (i * i) % 37 << ' ';
  }

  // What an attempt did, and how it ended.
  struct Attempt {
    absl::Status status;
    int calls = 0;
    std::vector<std::string> notes;
    std::vector<int64_t> restored;   // layers that an earlier attempt had finished
    std::vector<int64_t> quantized;  // layers that this one finished
  };
  // Stops with CANCELLED at the callback's call number `stop`.
  Attempt Run(int stop = -1) const {
    Attempt attempt;
    attempt.status =
        QuantizeModel(spec_, checkpoint_, artifact_, [&](const Progress& progress) {
          if (!progress.note.empty()) attempt.notes.push_back(progress.note);
          if (progress.finished != nullptr) {
            (progress.phase == Phase::kLoading ? attempt.restored : attempt.quantized)
                .push_back(progress.finished->layer);
          }
          return attempt.calls++ == stop ? absl::CancelledError("enough") : absl::OkStatus();
        }).status();
    return attempt;
  }
  // Stops when `layers` are finished.
  void RunUntil(int64_t layers) const {
    const auto stopped =
        QuantizeModel(spec_, checkpoint_, artifact_, [&](const Progress& progress) {
          return progress.layer == layers ? absl::CancelledError("enough") : absl::OkStatus();
        });
    ASSERT_TRUE(absl::IsCancelled(stopped.status())) << stopped.status();
  }
  Json Content() const { return ArtifactContent(artifact_); }
  Json UninterruptedContent() const {
    EXPECT_TRUE(Run().status.ok());
    Json content = Content();
    std::filesystem::remove_all(artifact_);
    return content;
  }
  std::filesystem::path staging() const { return StagingFolder(artifact_); }
  std::filesystem::path ShardOf(int shard) const {
    // Layer 1 is excluded; the rest is the last shard.
    return staging() / ("model-0000" + std::to_string(shard) + "-of-00004.safetensors");
  }
  bool OnlyTheArtifactIsThere() const {
    return std::filesystem::exists(artifact_) && !std::filesystem::exists(staging());
  }

  TempFolder folder_;
  const std::filesystem::path checkpoint_ = folder_.path() / "tiny";
  const std::filesystem::path corpus_ = folder_.path() / "c.txt";
  const std::filesystem::path artifact_ = folder_.path() / "artifacts" / "out";
  QuantizeSpec spec_;
};

TEST_F(ResumeTest, AStopAtAnyStepIsGoneOnFrom) {
  const int calls = Run().calls;
  const Json expected = Content();
  std::filesystem::remove_all(artifact_);
  for (int stop = 0; stop < calls; ++stop) {
    SCOPED_TRACE(stop);
    const Attempt stopped = Run(stop);
    EXPECT_TRUE(absl::IsCancelled(stopped.status)) << stopped.status;
    EXPECT_FALSE(std::filesystem::exists(artifact_));
    const Attempt next = Run();
    ASSERT_TRUE(next.status.ok()) << next.status;
    EXPECT_EQ(next.restored, stopped.quantized);
    EXPECT_EQ(next.restored.size() + next.quantized.size(), static_cast<size_t>(kLayers));
    if (!next.restored.empty()) {
      EXPECT_THAT(next.notes, testing::ElementsAre(testing::StrEq(
                                  "resumed at layer " + std::to_string(next.restored.size()) +
                                  " of " + std::to_string(kLayers))));
    } else {
      EXPECT_TRUE(next.notes.empty());
    }
    EXPECT_EQ(Content(), expected);
    EXPECT_TRUE(OnlyTheArtifactIsThere());
    std::filesystem::remove_all(artifact_);
  }
}

TEST_F(ResumeTest, EveryKindOfJobIsGoneOnFrom) {
  const std::vector<std::function<void(QuantizeSpec&)>> changes = {
      [](QuantizeSpec& s) { s.weights->constraint = ScaleConstraint::kM1; },
      [](QuantizeSpec& s) { s.weights->constraint = ScaleConstraint::kNone; },
      [](QuantizeSpec& s) {
        s.weights = WeightSpec{.format = Format::kInt8,
                               .asymmetric = true,
                               .group_size = 64,
                               .constraint = ScaleConstraint::kNone};
      },
      [](QuantizeSpec& s) { s.activations.reset(); },
      [](QuantizeSpec& s) { s.compute = Compute::kBf16; },
      [](QuantizeSpec& s) { s.rotate_seed = 5; },
      [](QuantizeSpec& s) { s.gptq.act_order = false; },
      [](QuantizeSpec& s) {
        s.scale_search = ScaleSearch::kDiagonal;
        s.lorc_iterations = 2;
      },
      [](QuantizeSpec& s) {
        s.method = Method::kRtn;
        s.calibration.corpus.clear();
      },
      [](QuantizeSpec& s) {
        s.weights.reset();
        s.lorc_rank = 0;
        s.calibration.corpus.clear();
      },
      [](QuantizeSpec& s) {
        s.weights.reset();
        s.lorc_rank = 0;
        s.calibration.corpus.clear();
        s.rotate_seed = 5;
      }};
  const QuantizeSpec original = spec_;
  for (size_t i = 0; i < changes.size(); ++i) {
    SCOPED_TRACE(i);
    spec_ = original;
    changes[i](spec_);
    const Json expected = UninterruptedContent();
    RunUntil(3);
    const Attempt next = Run();
    ASSERT_TRUE(next.status.ok()) << next.status;
    EXPECT_EQ(next.quantized, std::vector<int64_t>{3});
    EXPECT_EQ(Content(), expected);
    std::filesystem::remove_all(artifact_);
  }
}

TEST_F(ResumeTest, WhatIsNotThisJobsIsNotUsed) {
  const struct {
    const char* what;
    std::function<void()> change;
  } changes[] = {
      {"spec/damping", [&] { spec_.gptq.damping = 0.02; }},
      {"spec/weights/m2_rounding", [&] { spec_.weights->rounding = M2Rounding::kCeil; }},
      {"spec/rotate", [&] { spec_.rotate_seed = 0; }},
      {"spec/rotate_seed", [&] { spec_.rotate_seed = 1; }},
      {"spec/excluded", [&] { spec_.exclude.push_back("model.layers.3.*"); }},
      {"calibration/windows", [&] { spec_.calibration.windows = 7; }},
      {"calibration/sha256", [&] { WriteCorpus("other"); }},
      {"inputs/model.safetensors",
       [&] { ASSERT_TRUE(WriteTinyLlama({.layers = kLayers, .seed = 2}, checkpoint_).ok()); }},
      {"inputs/tokenizer.json",
       [&] { std::ofstream(checkpoint_ / "tokenizer.json", std::ios::app) << ' '; }},
  };
  for (const auto& [what, change] : changes) {
    SCOPED_TRACE(what);
    RunUntil(2);
    change();
    const Attempt next = Run();
    ASSERT_TRUE(next.status.ok()) << next.status;
    ASSERT_EQ(next.notes.size(), 1u);
    EXPECT_THAT(next.notes[0],
                StartsWith(std::string("started anew, what an earlier attempt has left can't be "
                                       "used: ") +
                           what));
    EXPECT_THAT(next.notes[0], HasSubstr("expected"));
    EXPECT_TRUE(next.restored.empty());
    const Json made = Content();
    std::filesystem::remove_all(artifact_);
    EXPECT_EQ(made, UninterruptedContent());
  }
}

TEST_F(ResumeTest, DamageIsNotUsed) {
  const Json expected = UninterruptedContent();
  const struct {
    const char* reason;
    std::function<void()> damage;
  } damages[] = {
      {"progress.json", [&] { std::filesystem::resize_file(staging() / "progress.json", 700); }},
      {"progress.json", [&] { std::filesystem::resize_file(staging() / "progress.json", 0); }},
      {"progress.json",
       [&] { std::ofstream(staging() / "progress.json") << R"({"format_version": 2})"; }},
      {"progress.json: layers[1]",
       [&] {
         Json record = ReadJsonFile(staging() / "progress.json").value();
         record["layers"].erase(1);
         std::ofstream(staging() / "progress.json") << record;
       }},
      {"model-00002-of-00004.safetensors: found sha256",
       [&] { std::filesystem::resize_file(ShardOf(2), 5000); }},
      {"model-00001-of-00004.safetensors: found sha256",
       [&] {
         std::fstream shard(ShardOf(1), std::ios::in | std::ios::out | std::ios::binary);
         shard.seekg(-1, std::ios::end);
         const char flipped = static_cast<char>(shard.get() ^ 0x10);
         shard.seekp(-1, std::ios::end);
         shard.put(flipped);
       }},
      {"model-00002-of-00004.safetensors", [&] { std::filesystem::remove(ShardOf(2)); }},
  };
  for (const auto& [reason, damage] : damages) {
    SCOPED_TRACE(reason);
    RunUntil(3);
    damage();
    const Attempt next = Run();
    ASSERT_TRUE(next.status.ok()) << next.status;
    ASSERT_EQ(next.notes.size(), 1u);
    EXPECT_THAT(next.notes[0], HasSubstr(reason));
    EXPECT_TRUE(next.restored.empty());
    EXPECT_EQ(Content(), expected);
    EXPECT_TRUE(OnlyTheArtifactIsThere());
    std::filesystem::remove_all(artifact_);
  }
}

TEST_F(ResumeTest, StrayFilesAreNotTakenIntoTheArtifact) {
  const Json expected = UninterruptedContent();
  RunUntil(2);
  std::ofstream(staging() / "shard.new") << "half of a shard";
  std::ofstream(staging() / "nibble.json") << "{}";
  std::filesystem::create_directories(staging() / "folder" / "in it");
  EXPECT_EQ(Run().restored.size(), 2u);
  EXPECT_EQ(Content(), expected);
}

TEST_F(ResumeTest, RemoveStagingLeavesNothing) {
  RunUntil(2);
  EXPECT_EQ(StagedArtifact(staging()), artifact_);
  EXPECT_EQ(StagedArtifact(artifact_), "");
  EXPECT_TRUE(RemoveStaging(artifact_).ok());
  EXPECT_TRUE(std::filesystem::is_empty(artifact_.parent_path()));
  EXPECT_TRUE(RemoveStaging(artifact_).ok());
}

// An attempt in a process of its own.
class AttemptProcess {
 public:
  explicit AttemptProcess(std::vector<std::string> arguments) {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    EXPECT_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    output_ = ends[0];
    char line[6];  // "ready\n"
    EXPECT_EQ(read(output_, line, sizeof(line)), static_cast<ssize_t>(sizeof(line)));
  }
  ~AttemptProcess() { close(output_); }

  // True when it ends by itself within this time, and well; kills it otherwise.
  bool EndsWithin(absl::Duration time) {
    pollfd output = {output_, 0, 0};  // its end is an event that is always told
    const bool ended = poll(&output, 1, static_cast<int>(absl::ToInt64Milliseconds(time))) > 0;
    if (!ended) kill(pid_, SIGKILL);
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    // It may have come to its end before the signal did.
    const bool well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    EXPECT_TRUE(well || (!ended && WIFSIGNALED(status))) << status;
    return well;
  }

 private:
  pid_t pid_ = 0;
  int output_ = -1;
};

TEST_F(ResumeTest, KilledAtRandomMomentsItMakesTheSameFiles) {
  constexpr int kKills = 24;
  const std::vector<std::string> command = {QUANTIZE_PROGRAM, checkpoint_.string(),
                                            artifact_.string(), corpus_.string()};
  AttemptProcess whole(command);
  const absl::Time began = absl::Now();
  ASSERT_TRUE(whole.EndsWithin(absl::Minutes(2)));
  double seconds = absl::ToDoubleSeconds(absl::Now() - began);
  const Json expected = Content();
  std::filesystem::remove_all(artifact_);

  const auto seed = std::random_device()();
  std::mt19937 random(seed);
  int kills = 0, resumed = 0, jobs = 0;
  while (kills < kKills) {
    SCOPED_TRACE("seed " + std::to_string(seed) + ", kill " + std::to_string(kills));
    const bool goes_on = std::filesystem::exists(staging() / "progress.json");
    std::uniform_real_distribution<double> moment(0, seconds);
    const absl::Time attempted = absl::Now();
    if (!AttemptProcess(command).EndsWithin(absl::Seconds(moment(random)))) {
      ++kills;
    } else {
      // The first may have been slow, and most moments then too late.
      seconds = std::min(seconds, absl::ToDoubleSeconds(absl::Now() - attempted));
    }
    if (goes_on) ++resumed;
    if (!std::filesystem::exists(artifact_)) continue;
    // Killed or not, it had committed.
    EXPECT_EQ(Content(), expected);
    EXPECT_TRUE(OnlyTheArtifactIsThere());
    std::filesystem::remove_all(artifact_);
    ++jobs;
  }
  ASSERT_TRUE(AttemptProcess(command).EndsWithin(absl::Minutes(2)));
  EXPECT_EQ(Content(), expected);
  std::printf("seed %u: %d kills, %d jobs, %d attempts went on from a layer\n", seed, kills,
              jobs + 1, resumed);
  EXPECT_GT(resumed, 0);
}

}  // namespace
}  // namespace nibble
