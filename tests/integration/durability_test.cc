// Jobs of a nibbled whose workers are killed, drained, preempted or run into faults: they go on and
// make the same files, or fail clearly and leave nothing.
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "tests/fixtures/artifacts.h"
#include "tests/integration/job_daemon.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class DurabilityTest : public JobDaemonTest {};

// The messages of an attempt's events.
std::vector<std::string> Messages(const std::vector<v1::JobEvent>& events, int attempt) {
  std::vector<std::string> messages;
  for (const v1::JobEvent& event : events) {
    if (event.attempt() == attempt && !event.message().empty()) messages.push_back(event.message());
  }
  return messages;
}

TEST_F(DurabilityTest, AKilledWorkersJobGoesOnAtItsLayerAndMakesTheSameFiles) {
  const v1::Job whole = MustSubmit(Request("whole", kManyWindows));
  const v1::Job job = MustSubmit(Request("out", kManyWindows));
  int killed = 0;
  const auto events = Watch(job.id(), 0, [&](const v1::JobEvent& event) {
    // Once in the second layer and once in the fourth.
    if (event.attempt() != killed + 1 || event.progress().layer() != 2 * killed + 1) return;
    ++killed;
    const pid_t worker = daemon_->worker();
    ASSERT_GT(worker, 0);
    kill(worker, SIGKILL);
  });
  ASSERT_EQ(killed, 2);
  const v1::Job done = Get(job.id());
  EXPECT_EQ(done.state(), v1::JOB_STATE_SUCCEEDED) << done.failure().message();
  EXPECT_EQ(done.attempt(), 3);
  EXPECT_EQ(done.lost_attempts(), 2);
  EXPECT_EQ(done.layers_size(), TinyLlama().layers);
  EXPECT_FALSE(HasStaging());
  EXPECT_EQ(ArtifactContent(root() / "artifacts" / "out"),
            ArtifactContent(root() / "artifacts" / "whole"));

  EXPECT_THAT(Messages(events, 2),
              ElementsAre(HasSubstr("was killed by signal 9"), HasSubstr("resumed at layer ")));
  EXPECT_THAT(Messages(events, 3),
              ElementsAre(HasSubstr("was killed by signal 9"), HasSubstr("resumed at layer ")));
  for (const v1::JobEvent& event : events) {
    if (event.message().find("resumed") == std::string::npos) continue;
    EXPECT_GE(event.progress().layer(), 2 * event.attempt() - 3);
    EXPECT_EQ(event.message(), "resumed at layer " + std::to_string(event.progress().layer()) +
                                   " of " + std::to_string(event.progress().layers()));
  }
  EXPECT_EQ(Get(whole.id()).attempt(), 1);
}

TEST_F(DurabilityTest, AJobCancelledWhileItWaitsToGoOnLeavesNothing) {
  const v1::Job job = MustSubmit(Request("out", kManyWindows));
  UntilLayer(job.id(), 1);
  v1::SubmitJobRequest urgent = Request("urgent", kManyWindows);
  urgent.mutable_spec()->set_priority(1);
  const v1::Job first = MustSubmit(urgent);
  daemon_->Stop(SIGTERM);
  EXPECT_TRUE(HasStaging());
  Start();
  UntilLayer(first.id(), 1);
  EXPECT_EQ(Get(job.id()).state(), v1::JOB_STATE_QUEUED);
  Cancel(job.id());
  EXPECT_FALSE(std::filesystem::exists(root() / "artifacts" / ".staging-out"));
  Cancel(first.id());
  Watch(first.id(), 0);
  EXPECT_FALSE(HasStaging());
}

TEST_F(DurabilityTest, InterruptedAtRandomMomentsItMakesTheSameFiles) {
  const v1::Job whole = MustSubmit(Request("whole", kManyWindows));
  const auto began = std::chrono::steady_clock::now();
  Watch(whole.id(), 0);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - began;
  const Json expected = ArtifactContent(root() / "artifacts" / "whole");

  const auto seed = std::random_device()();
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> moment(0, seconds.count());
  // Two losses a job: the third would end it. A drained attempt does not count.
  enum Interruption { kKillWorker, kKillDaemon, kStopDaemon };
  constexpr Interruption kPlans[][3] = {{kKillWorker, kStopDaemon, kKillWorker},
                                        {kStopDaemon, kKillDaemon, kKillWorker}};
  for (const auto& plan : kPlans) {
    const v1::Job job = MustSubmit(Request("out", kManyWindows));
    for (const Interruption interruption : plan) {
      SCOPED_TRACE("seed " + std::to_string(seed));
      if (EndsWithin(job.id(), moment(random))) break;
      if (interruption == kKillWorker) {
        if (const pid_t worker = daemon_->worker(); worker > 0) kill(worker, SIGKILL);
      } else {
        daemon_->Stop(interruption == kKillDaemon ? SIGKILL : SIGTERM);
        Start();
      }
    }
    EXPECT_EQ(Watch(job.id(), 0).back().state(), v1::JOB_STATE_SUCCEEDED) << "seed " << seed;
    EXPECT_EQ(ArtifactContent(root() / "artifacts" / "out"), expected) << "seed " << seed;
    EXPECT_FALSE(HasStaging());
    std::filesystem::remove_all(root() / "artifacts" / "out");
  }
}

TEST_F(DurabilityTest, AMoreUrgentJobComesFirstAndTheOtherGoesOn) {
  const v1::Job whole = MustSubmit(LongRequest("whole"));
  Watch(whole.id(), 0);
  const v1::Job job = MustSubmit(LongRequest("out"));
  UntilLayer(job.id(), 1);
  v1::SubmitJobRequest request = Request("urgent", kFewWindows);
  request.mutable_spec()->set_priority(1);
  const v1::Job urgent = MustSubmit(request);
  EXPECT_EQ(Watch(urgent.id(), 0).back().state(), v1::JOB_STATE_SUCCEEDED);
  const auto events = Watch(job.id(), 0);
  EXPECT_EQ(events.back().state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_THAT(Messages(events, 2),
              ElementsAre("a job of higher priority came first", HasSubstr("resumed at layer ")));
  const v1::Job done = Get(job.id());
  EXPECT_EQ(done.attempt(), 2);
  EXPECT_EQ(done.lost_attempts(), 0);
  EXPECT_EQ(ArtifactContent(root() / "artifacts" / "out"),
            ArtifactContent(root() / "artifacts" / "whole"));
}

TEST_F(DurabilityTest, TwoWorkersRunTwoJobsAtOnceAndAKilledOnesGoesOn) {
  daemon_.reset();
  Start({"--devices", "cpu,cpu", "--worker-threads", "2"});
  std::vector<std::string> ids;
  for (const std::string output : {"first", "second"}) {
    ids.push_back(MustSubmit(LongRequest(output)).id());
  }
  for (const std::string& id : ids) UntilLayer(id, 1);
  EXPECT_THAT((std::vector<std::string>{Get(ids[0]).worker(), Get(ids[1]).worker()}),
              UnorderedElementsAre("cpu/0", "cpu/1"));
  const std::vector<pid_t> workers = daemon_->workers();
  ASSERT_EQ(workers.size(), 2u);
  kill(workers[0], SIGKILL);

  int attempts = 0;
  int lost = 0;
  for (const std::string& id : ids) {
    EXPECT_EQ(Watch(id, 0).back().state(), v1::JOB_STATE_SUCCEEDED);
    const v1::Job done = Get(id);
    EXPECT_EQ(done.layers_size(), kLongLayers);
    attempts += done.attempt();
    lost += done.lost_attempts();
  }
  // The other's job was left alone.
  EXPECT_EQ(attempts, 3);
  EXPECT_EQ(lost, 1);
  // A thread each: what one makes, killed or not, the other makes too.
  EXPECT_EQ(ArtifactContent(root() / "artifacts" / "first"),
            ArtifactContent(root() / "artifacts" / "second"));
  EXPECT_FALSE(HasStaging());
}

TEST_F(DurabilityTest, ACheckpointTruncatedUnderTheJobFailsItAndLeavesNothing) {
  const TinyLlama large = {.hidden = 512, .layers = 4, .intermediate = 2048};
  const auto model = root() / "models" / "large";
  ASSERT_TRUE(WriteTinyLlama(large, model).ok());
  v1::SubmitJobRequest request = Request("out", kFewWindows);
  request.mutable_spec()->set_model("large");
  const v1::Job job = MustSubmit(request);
  UntilLayer(job.id(), 1);
  std::filesystem::resize_file(model / "model.safetensors", 100'000);
  const v1::JobEvent end = Watch(job.id(), 0).back();
  EXPECT_EQ(end.state(), v1::JOB_STATE_FAILED);
  EXPECT_EQ(end.failure().code(), grpc::StatusCode::INVALID_ARGUMENT) << end.failure().message();
  EXPECT_THAT(end.failure().message(), HasSubstr("model.safetensors"));
  EXPECT_FALSE(HasStaging());
  EXPECT_FALSE(std::filesystem::exists(root() / "artifacts" / "out"));
}

// No file of this process and of those that it starts may grow beyond `bytes` while it lives.
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

TEST_F(DurabilityTest, AJobWithoutRoomOnDiskFailsAndLeavesNothing) {
  // A layer has 7 MB of INT8 weights.
  const TinyLlama wide = {.hidden = 512, .layers = 1, .intermediate = 4096};
  ASSERT_TRUE(WriteTinyLlama(wide, root() / "models" / "wide").ok());
  daemon_.reset();
  {
    const FileSizeLimit limit(6 << 20);
    Start();
  }
  v1::SubmitJobRequest request = Request("out", kFewWindows);
  request.mutable_spec()->set_model("wide");
  request.mutable_spec()->set_weights(v1::FORMAT_INT8);
  request.mutable_spec()->set_method(v1::METHOD_RTN);
  request.mutable_spec()->clear_corpus();
  const v1::Job job = MustSubmit(request);
  const v1::JobEvent end = Watch(job.id(), 0).back();
  EXPECT_EQ(end.state(), v1::JOB_STATE_FAILED);
  EXPECT_EQ(end.failure().code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(end.failure().message(), HasSubstr("File too large"));
  EXPECT_FALSE(HasStaging());
  EXPECT_FALSE(std::filesystem::exists(root() / "artifacts" / "out"));
  // The worker lives: a job that has room succeeds.
  const v1::Job next = MustSubmit(Request("out", kFewWindows));
  EXPECT_EQ(Watch(next.id(), 0).back().state(), v1::JOB_STATE_SUCCEEDED);
}

TEST_F(DurabilityTest, AJobThatLosesThreeWorkersFails) {
  const v1::Job job = MustSubmit(Request("out", kManyWindows));
  int killed = 0;
  const auto events = Watch(job.id(), 0, [&](const v1::JobEvent& event) {
    if (event.state() != v1::JOB_STATE_RUNNING || event.attempt() != killed + 1) return;
    const pid_t worker = daemon_->worker();
    ASSERT_GT(worker, 0);
    kill(worker, SIGKILL);
    ++killed;
  });
  EXPECT_EQ(killed, 3);
  EXPECT_EQ(events.back().state(), v1::JOB_STATE_FAILED);
  EXPECT_EQ(events.back().failure().message(),
            "worker cpu/0 was killed by signal 9 (Killed) in attempt 3; 3 of 3 attempts were lost");
  EXPECT_FALSE(HasStaging());
  EXPECT_FALSE(std::filesystem::exists(root() / "artifacts" / "out"));
  // The daemon and a new worker live: the name is free again.
  const v1::Job next = MustSubmit(Request("out", kFewWindows));
  EXPECT_EQ(Watch(next.id(), 0).back().state(), v1::JOB_STATE_SUCCEEDED);
}

TEST_F(DurabilityTest, ACancelledJobLeavesNothing) {
  const v1::Job job = MustSubmit(Request("out", kManyWindows));
  const v1::Job waiting = MustSubmit(Request("second", kFewWindows));
  bool asked = false;
  const auto events = Watch(job.id(), 0, [&](const v1::JobEvent& event) {
    if (asked || event.state() != v1::JOB_STATE_RUNNING) return;
    asked = true;
    Cancel(waiting.id());
    Cancel(job.id());
  });
  EXPECT_EQ(Get(waiting.id()).state(), v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(events.back().state(), v1::JOB_STATE_CANCELLED);
  EXPECT_FALSE(HasStaging());
  EXPECT_FALSE(std::filesystem::exists(root() / "artifacts" / "out"));
  EXPECT_EQ(Get(job.id()).attempt(), 1);
}

TEST_F(DurabilityTest, AStoppedDaemonsJobGoesOnWithTheNextOne) {
  const v1::Job job = MustSubmit(Request("out", kManyWindows));
  const int64_t seen = UntilLayer(job.id(), 2);
  const int status = daemon_->Stop(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_TRUE(HasStaging());

  Start();
  const auto events = Watch(job.id(), seen);
  EXPECT_EQ(events.back().state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_THAT(Messages(events, 2),
              ElementsAre("its worker was told to stop", HasSubstr("resumed at layer ")));
  EXPECT_EQ(Get(job.id()).attempt(), 2);
  EXPECT_EQ(Get(job.id()).lost_attempts(), 0);
  EXPECT_FALSE(HasStaging());
}

TEST_F(DurabilityTest, AKilledDaemonsJobGoesOnWithTheNextOne) {
  const v1::Job job = MustSubmit(Request("out", kManyWindows));
  const int64_t seen = UntilLayer(job.id(), 1);
  daemon_->Stop(SIGKILL);
  Start();
  const auto events = Watch(job.id(), seen);
  EXPECT_EQ(events.back().state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_THAT(Messages(events, 2), ElementsAre(HasSubstr("the worker ended with its daemon"),
                                               HasSubstr("resumed at layer ")));
  EXPECT_EQ(Get(job.id()).attempt(), 2);
}

}  // namespace
}  // namespace nibble
