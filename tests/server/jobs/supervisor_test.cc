#include "server/jobs/supervisor.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <string>

#include "absl/synchronization/mutex.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

// The test plays the worker's part in the store; the child is a shell script, which says that it
// lives by a line about a job named "ready".
class SupervisorTest : public testing::Test {
 protected:
  void SetUp() override {
    store_ = JobStore::Open(folder_.path() / "nibble.db").value();
    std::filesystem::create_directory(artifacts());
    Watch("ready");
  }

  std::filesystem::path artifacts() const { return folder_.path() / "artifacts"; }
  std::filesystem::path staging() const { return artifacts() / ".staging-out"; }

  void Start(const std::string& script) {
    WorkerSupervisor::Options options;
    options.name = "w";
    options.command = {"/bin/sh", "-c", script};
    options.environment = {"NIBBLE_TEST_LAYERS=7"};
    options.artifacts = artifacts();
    options.first_backoff = absl::Milliseconds(1);
    options.drain = drain_;
    options.on_restart = [this] { Count("restarts", 1); };
    options.on_layers = [this](int64_t layers) { Count("layers", layers); };
    supervisor_ = WorkerSupervisor::Start(options, *store_, notifier_).value();
  }

  void Watch(const std::string& job) {
    notifier_.Add(job, [this, job] { Count(job, 1); });
  }
  void Count(const std::string& what, int64_t by) {
    absl::MutexLock lock(&mutex_);
    counts_[what] += by;
  }
  int64_t CountOf(const std::string& what) {
    absl::MutexLock lock(&mutex_);
    return counts_[what];
  }
  void Await(const std::string& what, int64_t count) {
    absl::MutexLock lock(&mutex_);
    const auto reached = [&] { return counts_[what] >= count; };
    ASSERT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&reached), absl::Seconds(60))) << what;
  }

  std::string Submit() {
    NewJob request;
    request.spec = "s";
    request.model = "m";
    request.output = "out";
    std::string id = store_->Submit(request).value().job.id;
    Watch(id);
    return id;
  }

  // As a worker does: takes the job and begins to write.
  Job Claim() {
    std::filesystem::create_directory(staging());
    std::ofstream(staging() / "half-written") << "x";
    return store_->Claim("w").value().value();
  }

  TempFolder folder_;
  absl::Duration drain_ = absl::Seconds(60);
  std::unique_ptr<JobStore> store_;
  JobNotifier notifier_;
  absl::Mutex mutex_;
  std::map<std::string, int64_t> counts_;
  std::unique_ptr<WorkerSupervisor> supervisor_;
};

TEST_F(SupervisorTest, AKilledWorkersJobIsQueuedAgainAndFailsAtTheThirdLoss) {
  Start("echo 'ready 0' >&0; read line; kill -9 $$");
  const std::string id = Submit();
  for (int attempt = 1; attempt <= 3; ++attempt) {
    SCOPED_TRACE(attempt);
    Await("ready", attempt);
    EXPECT_EQ(Claim().attempt, attempt);
    supervisor_->WakeWorker();
    Await(id, attempt);
    // The next attempt goes on from what is staged; after the last one nothing is left.
    EXPECT_EQ(std::filesystem::exists(staging()), attempt < 3);
    EXPECT_EQ(store_->Get(id).value().state, attempt < 3 ? JobState::kQueued : JobState::kFailed);
  }
  Await("ready", 4);  // a worker lives again
  const Job failed = store_->Get(id).value();
  EXPECT_EQ(failed.attempt, 3);
  EXPECT_EQ(failed.error.message(),
            "worker w was killed by signal 9 (Killed) in attempt 3; 3 of 3 attempts were lost");
  EXPECT_EQ(CountOf("restarts"), 3);
}

TEST_F(SupervisorTest, AWorkerThatExitsIsLostToo) {
  Start("echo 'ready 0' >&0; read line; exit 3");
  const std::string id = Submit();
  Await("ready", 1);
  Claim();
  supervisor_->WakeWorker();
  Await(id, 1);
  const auto events = store_->Events(id, 0, 10).value();
  EXPECT_EQ(events.back().message,
            "worker w exited with status 3 in attempt 1; 1 of 3 attempts were lost");
}

TEST_F(SupervisorTest, ALostCancellingJobIsCancelled) {
  Start("echo 'ready 0' >&0; read line; kill -9 $$");
  const std::string id = Submit();
  Await("ready", 1);
  Claim();
  ASSERT_TRUE(store_->Cancel(id).ok());
  supervisor_->WakeWorker();
  Await(id, 1);
  EXPECT_EQ(store_->Get(id).value().state, JobState::kCancelled);
  EXPECT_FALSE(std::filesystem::exists(staging()));
}

TEST_F(SupervisorTest, PassesLinesAndEnvironmentOn) {
  Start("echo \"ready $NIBBLE_TEST_LAYERS\" >&0; echo garbage >&0; echo 'ready 1' >&0; read line");
  Await("ready", 2);
  EXPECT_EQ(CountOf("layers"), 8);
}

TEST_F(SupervisorTest, TheWorkerTellsItsGpusMemory) {
  Start("echo 'device 85899345920' >&0; echo 'ready 0' >&0; read line");
  Await("ready", 1);
  EXPECT_EQ(supervisor_->device_bytes(), 85899345920);
  EXPECT_EQ(CountOf("layers"), 0);
}

TEST_F(SupervisorTest, AnotherWorkersJobIsLeftToIt) {
  Start("echo 'ready 0' >&0; read line; kill -9 $$");
  const std::string id = Submit();
  ASSERT_EQ(store_->Claim("other").value().value().id, id);
  Await("ready", 1);
  supervisor_->WakeWorker();
  Await("restarts", 1);
  EXPECT_EQ(store_->Get(id).value().state, JobState::kRunning);
  EXPECT_EQ(store_->Get(id).value().attempt, 1);
}

TEST_F(SupervisorTest, StoppingEndsTheWorkersInputAndKeepsItsJob) {
  Start("echo 'ready 0' >&0; cat >/dev/null; echo 'ended 0' >&0");
  Watch("ended");
  const std::string id = Submit();
  Await("ready", 1);
  Claim();
  supervisor_.reset();
  EXPECT_EQ(CountOf("ended"), 1);  // not killed: it had its time to stop
  EXPECT_EQ(store_->Get(id).value().state, JobState::kQueued);
  EXPECT_EQ(store_->Get(id).value().lost, 0);
  EXPECT_EQ(CountOf("restarts"), 0);
}

TEST_F(SupervisorTest, AWorkerThatDoesNotStopIsKilled) {
  drain_ = absl::Milliseconds(50);
  Start("echo 'ready 0' >&0; while read line <&0 || true; do :; done");
  Await("ready", 1);
  supervisor_.reset();
  EXPECT_EQ(CountOf("restarts"), 0);
}

TEST_F(SupervisorTest, ACommandThatIsNotThereIsTriedAgain) {
  WorkerSupervisor::Options options;
  options.command = {"/nonexistent/nibbled"};
  options.artifacts = artifacts();
  options.first_backoff = absl::Milliseconds(1);
  options.on_restart = [this] { Count("restarts", 1); };
  supervisor_ = WorkerSupervisor::Start(options, *store_, notifier_).value();
  Await("restarts", 3);
}

}  // namespace
}  // namespace nibble
