#include "server/jobs/job_store.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

constexpr JobState kStates[] = {JobState::kQueued,    JobState::kRunning, JobState::kCancelling,
                                JobState::kSucceeded, JobState::kFailed,  JobState::kCancelled};

class JobStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    auto store = JobStore::Open(folder_.path() / "nibble.db");
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  NewJob Request(const std::string& output) {
    return {.request_id = "",
            .request = "as sent",
            .spec = std::string("spec\0bytes", 10),
            .model = "m",
            .output = output,
            .labels = {},
            .priority = 0};
  }
  Job Submit(const NewJob& request) { return store_->Submit(request).value().job; }
  Job Claim() { return store_->Claim("w").value().value(); }
  absl::StatusOr<std::vector<Job>> TakeBack(Interruption interruption, std::string_view reason) {
    return store_->TakeBack("", interruption, reason, [](const Job&) { return absl::OkStatus(); });
  }
  static Lease LeaseOf(const Job& job) { return {job.id, job.attempt}; }
  absl::StatusCode CodeOf(const absl::Status& status) { return status.code(); }

  TempFolder folder_;
  std::unique_ptr<JobStore> store_;
};

TEST_F(JobStoreTest, KeepsEverySubmittedFieldAcrossAReopening) {
  NewJob request = Request("out");
  request.request_id = "r1";
  request.labels = {{"team", "a"}, {"x", ""}};
  request.priority = -3;
  const std::string id = Submit(request).id;
  store_.reset();
  store_ = JobStore::Open(folder_.path() / "nibble.db").value();
  const Job job = store_->Get(id).value();
  EXPECT_EQ(job.submitted.request_id, "r1");
  EXPECT_EQ(job.submitted.spec, request.spec);
  EXPECT_EQ(job.submitted.model, "m");
  EXPECT_EQ(job.submitted.output, "out");
  EXPECT_EQ(job.submitted.labels, request.labels);
  EXPECT_EQ(job.submitted.priority, -3);
  EXPECT_EQ(job.state, JobState::kQueued);
  EXPECT_EQ(job.attempt, 1);
  EXPECT_FALSE(job.started.has_value());
  EXPECT_FALSE(job.ended.has_value());
}

TEST_F(JobStoreTest, OpensADatabaseOfTheFirstSchema) {
  const std::string id = Submit(Request("out")).id;
  store_.reset();
  {
    SqliteDatabase database = SqliteDatabase::Open(folder_.path() / "nibble.db", 1000).value();
    ASSERT_TRUE(database.Execute("ALTER TABLE jobs DROP COLUMN device").ok());
    ASSERT_TRUE(database.Execute("PRAGMA user_version = 1").ok());
  }
  store_ = JobStore::Open(folder_.path() / "nibble.db").value();
  EXPECT_EQ(Claim().id, id);
}

TEST_F(JobStoreTest, RefusesADatabaseOfANewerSchema) {
  store_.reset();
  {
    SqliteDatabase database = SqliteDatabase::Open(folder_.path() / "nibble.db", 1000).value();
    ASSERT_TRUE(database.Execute("PRAGMA user_version = 99").ok());
  }
  const auto store = JobStore::Open(folder_.path() / "nibble.db");
  EXPECT_EQ(store.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(store.status().message().find("found schema version 99"), std::string::npos);
}

TEST_F(JobStoreTest, SameRequestIdAndSpecIsTheSameJob) {
  NewJob request = Request("out");
  request.request_id = "r1";
  const auto first = store_->Submit(request).value();
  const auto second = store_->Submit(request).value();
  EXPECT_TRUE(first.created);
  EXPECT_FALSE(second.created);
  EXPECT_EQ(first.job.id, second.job.id);
  EXPECT_EQ(store_->List({}, 10, "").value().jobs.size(), 1u);

  EXPECT_EQ(store_->FindRequest("r1", "as sent").value()->id, first.job.id);
  EXPECT_FALSE(store_->FindRequest("r2", "as sent").value().has_value());
  EXPECT_FALSE(store_->FindRequest("", "as sent").value().has_value());

  request.request = "another";
  EXPECT_EQ(CodeOf(store_->Submit(request).status()), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(CodeOf(store_->FindRequest("r1", "another").status()),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store_->List({}, 10, "").value().jobs.size(), 1u);
}

TEST_F(JobStoreTest, AnOutputBelongsToOneLiveJob) {
  const Job first = Submit(Request("out"));
  EXPECT_EQ(CodeOf(store_->Submit(Request("out")).status()), absl::StatusCode::kAlreadyExists);
  EXPECT_NE(store_->LiveJobOf("out").value(), "");
  ASSERT_TRUE(store_->Cancel(first.id).ok());
  EXPECT_EQ(store_->LiveJobOf("out").value(), "");
  EXPECT_TRUE(store_->Submit(Request("out")).ok());
}

TEST_F(JobStoreTest, ClaimsByPriorityThenAge) {
  const std::vector<int> priorities = {0, 5, 0, 5, -1};
  std::vector<std::string> ids;
  for (size_t i = 0; i < priorities.size(); ++i) {
    NewJob request = Request(absl::StrCat("out", i));
    request.priority = priorities[i];
    ids.push_back(Submit(request).id);
  }
  for (int expected : {1, 3, 0, 2, 4}) EXPECT_EQ(Claim().id, ids[expected]);
  EXPECT_FALSE(store_->Claim("w").value().has_value());
}

TEST_F(JobStoreTest, AJobThatOnlySomeDevicesHoldIsLeftToTheirWorkers) {
  Submit(Request("on a GPU"));
  const Job on_gpu = store_->Claim("cuda:0/1").value().value();
  Submit(Request("on a CPU"));
  const Job on_cpu = store_->Claim("cpu/0").value().value();
  NewJob large = Request("large");
  large.device = "cuda";
  large.priority = 1;
  const Job waiting = Submit(large);
  EXPECT_FALSE(store_->Claim("cpu/2").value().has_value());
  // The newer job is the less urgent one, but its room would not do.
  EXPECT_FALSE(store_->IsOutranked(LeaseOf(on_cpu)).value());
  EXPECT_TRUE(store_->IsOutranked(LeaseOf(on_gpu)).value());
  ASSERT_TRUE(store_->Release(LeaseOf(on_gpu), "made room").ok());
  const Job claimed = store_->Claim("cuda:0/1").value().value();
  EXPECT_EQ(claimed.id, waiting.id);
  EXPECT_EQ(claimed.submitted.device, "cuda");
}

TEST_F(JobStoreTest, ASecondConnectionSeesAndFencesTheSameRows) {
  auto other = JobStore::Open(folder_.path() / "nibble.db").value();
  const Job submitted = Submit(Request("out"));
  const Job claimed = other->Claim("w").value().value();
  EXPECT_EQ(claimed.id, submitted.id);
  EXPECT_FALSE(store_->Claim("w").value().has_value());
  EXPECT_EQ(store_->Get(submitted.id).value().state, JobState::kRunning);
  EXPECT_EQ(store_->Get(submitted.id).value().worker, "w");
}

TEST_F(JobStoreTest, EventsAreSequencedAndResumable) {
  const Job job = Submit(Request("out"));
  Claim();
  for (int layer = 1; layer <= 3; ++layer) {
    const JobProgress progress = {2, layer, 3, 0.25, 1.5, 3.0 - layer};
    ASSERT_TRUE(store_->Report({job.id, 1}, progress, "", "report").ok());
  }
  ASSERT_TRUE(store_->Succeed({job.id, 1}, "summary").ok());
  const auto events = store_->Events(job.id, 0, 100).value();
  ASSERT_EQ(events.size(), 6u);
  const JobState states[] = {JobState::kQueued,  JobState::kRunning, JobState::kRunning,
                             JobState::kRunning, JobState::kRunning, JobState::kSucceeded};
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].sequence, static_cast<int64_t>(i) + 1);
    EXPECT_EQ(events[i].state, states[i]) << i;
  }
  EXPECT_EQ(events[3].progress.phase, 2);
  EXPECT_EQ(events[3].progress.layer, 2);
  EXPECT_EQ(events[3].progress.layers, 3);
  EXPECT_EQ(events[3].progress.mean_output_error, 0.25);
  EXPECT_EQ(events[3].progress.seconds, 1.5);
  EXPECT_EQ(events[0].progress.seconds_left, std::nullopt);
  EXPECT_EQ(events[4].progress.seconds_left, 0);
  EXPECT_EQ(events[3].layer, "report");

  const auto rest = store_->Events(job.id, 4, 1).value();
  ASSERT_EQ(rest.size(), 1u);
  EXPECT_EQ(rest[0].sequence, 5);
  const Job done = store_->Get(job.id).value();
  EXPECT_EQ(done.summary, "summary");
  EXPECT_EQ(done.last_sequence, 6);
  EXPECT_EQ(done.worker, "");
  EXPECT_EQ(store_->Layers(done).value(), std::vector<std::string>(3, "report"));
  EXPECT_TRUE(done.ended.has_value());
  EXPECT_EQ(done.progress.layer, 3);
}

TEST_F(JobStoreTest, AnOlderAttemptIsFencedOff) {
  const Job job = Submit(Request("out"));
  const Lease old = LeaseOf(Claim());
  ASSERT_EQ(TakeBack(Interruption::kLost, "worker died").value().size(), 1u);
  const Lease current = LeaseOf(Claim());
  EXPECT_EQ(current.attempt, 2);

  EXPECT_EQ(CodeOf(store_->Report(old, {}, "", "")), absl::StatusCode::kAborted);
  EXPECT_EQ(CodeOf(store_->Succeed(old, "")), absl::StatusCode::kAborted);
  EXPECT_EQ(CodeOf(store_->Fail(old, absl::InternalError("x"))), absl::StatusCode::kAborted);
  EXPECT_EQ(CodeOf(store_->EndCancelled(old)), absl::StatusCode::kAborted);
  EXPECT_EQ(CodeOf(store_->Release(old, "")), absl::StatusCode::kAborted);
  EXPECT_EQ(store_->Get(job.id).value().state, JobState::kRunning);

  EXPECT_TRUE(store_->Succeed(current, "s").ok());
  EXPECT_EQ(CodeOf(store_->Succeed(current, "again")), absl::StatusCode::kAborted);
  EXPECT_EQ(store_->Get(job.id).value().summary, "s");
}

TEST_F(JobStoreTest, TheThirdLostAttemptFailsTheJob) {
  const Job job = Submit(Request("out"));
  for (int attempt = 1; attempt <= 3; ++attempt) {
    EXPECT_EQ(Claim().attempt, attempt);
    const auto jobs = TakeBack(Interruption::kLost, "worker was killed").value();
    ASSERT_EQ(jobs.size(), 1u);
    EXPECT_EQ(jobs[0].state, attempt < 3 ? JobState::kQueued : JobState::kFailed);
  }
  const Job failed = store_->Get(job.id).value();
  EXPECT_EQ(failed.attempt, 3);
  EXPECT_EQ(failed.error.message(), "worker was killed in attempt 3; 3 of 3 attempts were lost");
  EXPECT_FALSE(store_->Claim("w").value().has_value());
}

TEST_F(JobStoreTest, DrainingCountsAttemptsButNotLosses) {
  const Job job = Submit(Request("out"));
  for (int attempt = 1; attempt <= 5; ++attempt) {
    const Lease lease = LeaseOf(Claim());
    EXPECT_EQ(lease.attempt, attempt);
    if (attempt % 2 == 0) {
      ASSERT_TRUE(TakeBack(Interruption::kDrained, "the daemon stops").ok());
    } else {
      ASSERT_TRUE(store_->Release(lease, "the daemon stops").ok());
    }
  }
  EXPECT_EQ(store_->Get(job.id).value().state, JobState::kQueued);
  EXPECT_EQ(store_->Get(job.id).value().attempt, 6);
}

TEST_F(JobStoreTest, CancellingAQueuedJobEndsItAtOnce) {
  const Job job = Submit(Request("out"));
  EXPECT_EQ(store_->Cancel(job.id).value().state, JobState::kCancelled);
  EXPECT_EQ(store_->Cancel(job.id).value().state, JobState::kCancelled);
  EXPECT_EQ(store_->Events(job.id, 0, 10).value().size(), 2u);
  EXPECT_FALSE(store_->Claim("w").value().has_value());
}

TEST_F(JobStoreTest, CancellingARunningJobTellsItsWorker) {
  const Job job = Submit(Request("out"));
  const Lease lease = LeaseOf(Claim());
  EXPECT_EQ(store_->Cancel(job.id).value().state, JobState::kCancelling);
  EXPECT_EQ(store_->Cancel(job.id).value().state, JobState::kCancelling);
  EXPECT_EQ(CodeOf(store_->Report(lease, {}, "", "")), absl::StatusCode::kCancelled);
  EXPECT_TRUE(store_->EndCancelled(lease).ok());
  EXPECT_EQ(store_->Get(job.id).value().state, JobState::kCancelled);
}

TEST_F(JobStoreTest, ACancelledJobIsNotRetried) {
  for (int way = 0; way < 3; ++way) {
    const Job job = Submit(Request("out"));
    const Lease lease = LeaseOf(Claim());
    ASSERT_TRUE(store_->Cancel(job.id).ok());
    if (way == 0) {
      ASSERT_TRUE(TakeBack(Interruption::kLost, "died").ok());
    }
    if (way == 1) {
      ASSERT_TRUE(TakeBack(Interruption::kDrained, "stops").ok());
    }
    if (way == 2) {
      ASSERT_TRUE(store_->Release(lease, "stops").ok());
    }
    EXPECT_EQ(store_->Get(job.id).value().state, JobState::kCancelled) << way;
  }
}

TEST_F(JobStoreTest, OnlyEndedJobsAreDeletedAndOnlyUnendedCancelled) {
  const Job job = Submit(Request("out"));
  EXPECT_EQ(CodeOf(store_->Delete(job.id)), absl::StatusCode::kFailedPrecondition);
  const Lease lease = LeaseOf(Claim());
  EXPECT_EQ(CodeOf(store_->Delete(job.id)), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(store_->Fail(lease, absl::InvalidArgumentError("bad \xff bytes")).ok());
  EXPECT_EQ(store_->Get(job.id).value().error, absl::InvalidArgumentError("bad \xff bytes"));
  EXPECT_EQ(CodeOf(store_->Cancel(job.id).status()), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(store_->Delete(job.id).ok());
  EXPECT_EQ(CodeOf(store_->Get(job.id).status()), absl::StatusCode::kNotFound);
  EXPECT_TRUE(store_->Events(job.id, 0, 10).value().empty());
  EXPECT_EQ(CodeOf(store_->Delete(job.id)), absl::StatusCode::kNotFound);
  EXPECT_EQ(CodeOf(store_->Cancel(job.id).status()), absl::StatusCode::kNotFound);
}

TEST_F(JobStoreTest, PagesHoldEveryJobOnceNewestFirst) {
  std::vector<std::string> expected;
  for (int i = 0; i < 7; ++i) {
    expected.insert(expected.begin(), Submit(Request(absl::StrCat("out", i))).id);
  }
  for (int page_size : {1, 2, 3, 7, 8}) {
    std::vector<std::string> seen;
    std::string token;
    do {
      const JobPage page = store_->List({}, page_size, token).value();
      EXPECT_LE(page.jobs.size(), static_cast<size_t>(page_size));
      EXPECT_FALSE(page.jobs.empty());
      for (const Job& job : page.jobs) seen.push_back(job.id);
      token = page.next_page_token;
      if (seen.size() == 3) Submit(Request(absl::StrCat("late", page_size)));
    } while (!token.empty());
    if (page_size == 1 || page_size == 3) {
      // A job submitted while paging does not disturb the pages.
      expected.insert(expected.begin(), store_->List({}, 1, "").value().jobs[0].id);
      EXPECT_EQ(seen, std::vector<std::string>(expected.begin() + 1, expected.end())) << page_size;
    } else {
      EXPECT_EQ(seen, expected) << page_size;
    }
  }
}

TEST_F(JobStoreTest, ForeignPageTokensAreRefused) {
  for (const char* token : {"1", "j", "jx", "j-1", "jffffffffffffffff", "' OR 1 --"}) {
    EXPECT_EQ(CodeOf(store_->List({}, 1, token).status()), absl::StatusCode::kInvalidArgument)
        << token;
  }
}

TEST_F(JobStoreTest, FiltersByStateAndByEveryLabel) {
  NewJob a = Request("a");
  a.labels = {{"team", "x"}, {"env", "dev"}};
  NewJob b = Request("b");
  b.labels = {{"team", "x"}};
  const Job job_a = Submit(a);
  const Job job_b = Submit(b);
  ASSERT_TRUE(store_->Cancel(job_b.id).ok());
  const auto ids = [&](const JobFilter& filter) {
    std::set<std::string> found;
    const auto page = store_->List(filter, 10, "").value();
    for (const Job& job : page.jobs) found.insert(job.submitted.output);
    return found;
  };
  using Names = std::set<std::string>;
  EXPECT_EQ(ids({{}, {{"team", "x"}}, ""}), (Names{"a", "b"}));
  EXPECT_EQ(ids({{}, {{"team", "x"}, {"env", "dev"}}, ""}), (Names{"a"}));
  EXPECT_EQ(ids({{}, {{"team", "dev"}}, ""}), (Names{}));
  EXPECT_EQ(ids({{JobState::kCancelled}, {}, ""}), (Names{"b"}));
  EXPECT_EQ(ids({{JobState::kQueued, JobState::kCancelled}, {}, ""}), (Names{"a", "b"}));
  EXPECT_EQ(ids({{}, {}, "m"}), (Names{"a", "b"}));
  EXPECT_EQ(ids({{}, {}, "other"}), (Names{}));
  EXPECT_EQ(ids({{JobState::kRunning}, {{"team", "x"}}, ""}), (Names{}));
}

TEST_F(JobStoreTest, CountsByState) {
  Submit(Request("a"));
  Submit(Request("b"));
  Claim();
  auto counts = store_->CountByState().value();
  EXPECT_EQ(counts.size(), 6u);
  EXPECT_EQ(counts[JobState::kQueued], 1);
  EXPECT_EQ(counts[JobState::kRunning], 1);
  EXPECT_EQ(counts[JobState::kFailed], 0);
}

// The table of DESIGN 4, written out.
TEST(JobState, MovesOnlyAsDocumented) {
  std::set<std::pair<int, int>> allowed = {{1, 2}, {1, 6}, {2, 1}, {2, 3}, {2, 4},
                                           {2, 5}, {3, 4}, {3, 5}, {3, 6}};
  for (JobState from : kStates) {
    for (JobState to : kStates) {
      EXPECT_EQ(CanMove(from, to), allowed.contains({static_cast<int>(from), static_cast<int>(to)}))
          << JobStateName(from) << " -> " << JobStateName(to);
    }
  }
}

TEST_F(JobStoreTest, OnlyTheLeastUrgentRunningJobMakesRoom) {
  const auto submit = [&](const std::string& output, int priority) {
    NewJob request = Request(output);
    request.priority = priority;
    return Submit(request);
  };
  const auto outranked = [&](const Job& job) { return store_->IsOutranked(LeaseOf(job)).value(); };
  submit("normal", 0);
  const Job normal = Claim();
  submit("newer", 0);
  const Job newer = Claim();
  submit("urgent", 2);
  const Job urgent = Claim();
  submit("equal", 0);
  for (const Job& job : {normal, newer, urgent}) EXPECT_FALSE(outranked(job));
  submit("more", 1);
  EXPECT_FALSE(outranked(normal));
  EXPECT_TRUE(outranked(newer));
  EXPECT_FALSE(outranked(urgent));

  ASSERT_TRUE(store_->Release(LeaseOf(newer), "made room").ok());
  const Job more = Claim();
  EXPECT_EQ(more.submitted.output, "more");
  for (const Job& job : {normal, more, urgent}) EXPECT_FALSE(outranked(job));
}

TEST_F(JobStoreTest, TakesBackOnlyWhatTheWorkerHolds) {
  const std::string first = Submit(Request("one")).id;
  const std::string second = Submit(Request("two")).id;
  ASSERT_TRUE(store_->Claim("a").ok());
  ASSERT_TRUE(store_->Claim("b").ok());
  const auto jobs = store_->TakeBack("b", Interruption::kLost, "died",
                                     [](const Job&) { return absl::OkStatus(); });
  ASSERT_EQ(jobs.value().size(), 1u);
  EXPECT_EQ(jobs.value()[0].id, second);
  EXPECT_EQ(store_->Get(first).value().state, JobState::kRunning);
}

}  // namespace
}  // namespace nibble
