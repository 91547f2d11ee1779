#include "server/jobs/worker_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

// The workers are shell scripts, which speak of a job by their own name; the test claims as they
// would.
class WorkerPoolTest : public testing::Test {
 protected:
  void SetUp() override {
    store_ = JobStore::Open(folder_.path() / "nibble.db").value();
    std::filesystem::create_directory(artifacts());
    for (const char* name : {"a", "b"}) {
      notifier_.Add(name, [this, name] {
        absl::MutexLock lock(&mutex_);
        heard_.insert(name);
      });
    }
  }

  std::filesystem::path artifacts() const { return folder_.path() / "artifacts"; }
  std::filesystem::path Make(const std::string& name) const {
    std::filesystem::create_directory(artifacts() / name);
    return artifacts() / name;
  }
  std::string Submit(const std::string& output) {
    const NewJob request = {.request_id = "",
                            .request = "r",
                            .spec = "s",
                            .model = "m",
                            .output = output,
                            .labels = {},
                            .priority = 0};
    return store_->Submit(request).value().job.id;
  }
  WorkerSupervisor::Options Worker(const std::string& name, const std::string& script) const {
    WorkerSupervisor::Options options;
    options.name = name;
    options.command = {"/bin/sh", "-c", script};
    options.artifacts = artifacts();
    options.first_backoff = absl::Milliseconds(1);
    return options;
  }
  // Worker "a" does `script`; "b" waits for its end.
  void Start(const std::string& script) {
    pool_ = WorkerPool::Start({Worker("a", script), Worker("b", "echo 'b 0' >&0; cat >/dev/null")},
                              *store_, notifier_)
                .value();
  }
  void AwaitHeard(const std::set<std::string>& names) {
    absl::MutexLock lock(&mutex_);
    const auto reached = [&] {
      return std::includes(heard_.begin(), heard_.end(), names.begin(), names.end());
    };
    ASSERT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&reached), absl::Seconds(60)));
    heard_.clear();
  }

  TempFolder folder_;
  std::unique_ptr<JobStore> store_;
  JobNotifier notifier_;
  absl::Mutex mutex_;
  std::set<std::string> heard_;
  std::unique_ptr<WorkerPool> pool_;
};

constexpr char kWaits[] = "echo 'a 0' >&0; cat >/dev/null";

TEST_F(WorkerPoolTest, TakesBackTheJobsOfAnEarlierDaemonsWorkers) {
  const std::vector<std::string> ids = {Submit("one"), Submit("two"), Submit("three")};
  ASSERT_TRUE(store_->Claim("a").ok());
  ASSERT_TRUE(store_->Claim("a worker that is no more").ok());
  const auto staging = Make(".staging-one");
  Start(kWaits);
  for (const std::string& id : ids) {
    EXPECT_EQ(store_->Get(id).value().state, JobState::kQueued);
    EXPECT_EQ(store_->Get(id).value().attempt, id == ids[2] ? 1 : 2);
  }
  EXPECT_TRUE(std::filesystem::exists(staging));
}

TEST_F(WorkerPoolTest, RemovesWhatNoLiveJobGoesOnFrom) {
  Submit("out");
  ASSERT_TRUE(store_->Claim("a").ok());
  const auto staging = Make(".staging-out");
  const auto orphan = Make(".staging-of-an-ended-job");
  const auto untold = Make("out");  // committed, but nobody was told
  const auto other = Make("other");
  Start(kWaits);
  EXPECT_FALSE(std::filesystem::exists(orphan));
  EXPECT_FALSE(std::filesystem::exists(untold));
  EXPECT_TRUE(std::filesystem::exists(other));
  EXPECT_TRUE(std::filesystem::exists(staging));
}

TEST_F(WorkerPoolTest, OneWorkersDeathLeavesTheOthersJobAlone) {
  Start("echo 'a 0' >&0; read line; kill -9 $$");
  AwaitHeard({"a", "b"});
  const std::string first = Submit("one");
  const std::string second = Submit("two");
  ASSERT_EQ(store_->Claim("a").value().value().id, first);
  ASSERT_EQ(store_->Claim("b").value().value().id, second);
  pool_->Wake();
  AwaitHeard({"a"});  // a new one lives, after the old one's job was taken back
  EXPECT_EQ(store_->Get(first).value().state, JobState::kQueued);
  EXPECT_EQ(store_->Get(second).value().state, JobState::kRunning);
  EXPECT_EQ(store_->Get(second).value().lost, 0);
}

TEST_F(WorkerPoolTest, StoppingPutsEveryJobBack) {
  Start(kWaits);
  AwaitHeard({"a", "b"});
  const std::string first = Submit("one");
  const std::string second = Submit("two");
  ASSERT_TRUE(store_->Claim("a").ok());
  ASSERT_TRUE(store_->Claim("b").ok());
  pool_->Stop();
  pool_.reset();
  for (const std::string& id : {first, second}) {
    EXPECT_EQ(store_->Get(id).value().state, JobState::kQueued);
    EXPECT_EQ(store_->Get(id).value().lost, 0);
  }
}

}  // namespace
}  // namespace nibble
