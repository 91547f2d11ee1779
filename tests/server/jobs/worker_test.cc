#include "server/jobs/worker.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "server/jobs/job_store.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

// The worker runs in this process, on the CPU; its supervisor has closed its end of the line. Each
// job fails: its spec in the store is not one.
class WorkerTest : public testing::Test {
 protected:
  WorkerTest() : standard_input_(dup(STDIN_FILENO)) {
    store_ = JobStore::Open(root_.database()).value();
    int line[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, line), 0);
    dup2(line[0], STDIN_FILENO);
    close(line[0]);
    supervisor_ = line[1];
  }
  ~WorkerTest() override {
    dup2(standard_input_, STDIN_FILENO);
    close(standard_input_);
    HangUp();
  }

  // The worker ends where it next looks.
  void HangUp() {
    if (supervisor_ >= 0) close(supervisor_);
    supervisor_ = -1;
  }

  std::string Submit(const std::string& output) {
    const NewJob request = {.request_id = "",
                            .request = "as sent",
                            .spec = "no spec",
                            .model = "m",
                            .output = output,
                            .labels = {},
                            .priority = 0};
    return store_->Submit(request).value().job.id;
  }
  Job Get(const std::string& id) { return store_->Get(id).value(); }

  TempFolder folder_;
  const DataRoot root_{folder_.path()};
  std::unique_ptr<JobStore> store_;
  const int standard_input_;
  int supervisor_ = -1;
};

TEST_F(WorkerTest, ADeviceThatHasFailedForGoodEndsTheWorkerAndNotItsJobs) {
  const std::string first = Submit("first");
  const std::string second = Submit("second");
  int asked = 0;
  const absl::Status ended = RunWorker(root_, "w", Device{}, [&](const Device&) {
    ++asked;
    return absl::InternalError("an illegal memory access was encountered");
  });
  EXPECT_EQ(ended.message(), "an illegal memory access was encountered");
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(Get(first).state, JobState::kRunning);
  EXPECT_EQ(Get(first).worker, "w");
  EXPECT_EQ(Get(second).state, JobState::kQueued);
  // What the supervisor does then.
  const auto clean_up = [](const Job&) { return absl::OkStatus(); };
  ASSERT_TRUE(store_->TakeBack("w", Interruption::kLost, "its worker died", clean_up).ok());
  EXPECT_EQ(Get(first).state, JobState::kQueued);
  EXPECT_EQ(Get(first).attempt, 2);
}

TEST_F(WorkerTest, AJobThatFailsOnAWorkingDeviceIsFailedAndTheNextIsTaken) {
  const std::string first = Submit("first");
  const std::string second = Submit("second");
  int asked = 0;
  const absl::Status ended = RunWorker(root_, "w", Device{}, [&](const Device&) {
    if (++asked == 2) HangUp();
    return absl::OkStatus();
  });
  EXPECT_TRUE(ended.ok()) << ended;
  EXPECT_EQ(asked, 2);
  for (const std::string& id : {first, second}) {
    EXPECT_EQ(Get(id).state, JobState::kFailed);
    EXPECT_EQ(Get(id).error.code(), absl::StatusCode::kDataLoss);
  }
}

}  // namespace
}  // namespace nibble
