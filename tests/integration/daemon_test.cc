// The built nibbled's jobs, driven over gRPC as a client does: what is asked, told and refused.
#include <gmock/gmock.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tests/integration/job_daemon.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

class DaemonTest : public JobDaemonTest {};

TEST_F(DaemonTest, RunsAJobToSuccessAndItsWatchResumes) {
  const v1::Job job = MustSubmit(Request("out", kFewWindows));
  EXPECT_EQ(job.state(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(job.spec().scale(), v1::SCALE_CONSTRAINT_M2);  // a default, filled in
  const auto events = Watch(job.id(), 0);
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.front().state(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(events.back().state(), v1::JOB_STATE_SUCCEEDED) << events.back().ShortDebugString();
  EXPECT_GT(events.back().summary().linear_bits_per_weight(), 4);
  EXPECT_TRUE(std::filesystem::exists(root() / "artifacts" / "out" / "nibble.json"));
  EXPECT_FALSE(HasStaging());

  const v1::Job done = Get(job.id());
  EXPECT_EQ(done.layers_size(), TinyLlama().layers);
  EXPECT_EQ(done.last_sequence(), static_cast<int64_t>(events.size()));
  const auto rest = Watch(job.id(), done.last_sequence() - 2);
  ASSERT_EQ(rest.size(), 2u);
  EXPECT_EQ(rest.back().SerializeAsString(), events.back().SerializeAsString());
  EXPECT_TRUE(Watch(job.id(), done.last_sequence()).empty());
}

TEST_F(DaemonTest, AnEstimateTellsWhatTheJobThenTakes) {
  const v1::SubmitJobRequest request = Request("out", kFewWindows);
  v1::EstimateJobRequest question;
  *question.mutable_spec() = request.spec();
  v1::JobEstimate estimate;
  {
    grpc::ClientContext context;
    const grpc::Status status = stub_->EstimateJob(&context, question, &estimate);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  EXPECT_TRUE(estimate.fits()) << estimate.reason();
  EXPECT_EQ(estimate.reason(), "");
  EXPECT_EQ(estimate.device_memory_bytes(), 0);
  EXPECT_GT(estimate.seconds(), 0);
  const v1::Job job = MustSubmit(request);
  const v1::JobSummary summary = Watch(job.id(), 0).back().summary();
  EXPECT_GE(estimate.host_memory_bytes(), summary.peak_host_bytes());
  EXPECT_GE(estimate.artifact_bytes(), summary.artifact_bytes());
  EXPECT_GE(estimate.disk_bytes(), summary.artifact_bytes());
  EXPECT_DOUBLE_EQ(estimate.linear_bits_per_weight(), summary.linear_bits_per_weight());

  // The name is taken by now: an estimate's errors are a submission's.
  grpc::ClientContext context;
  EXPECT_EQ(stub_->EstimateJob(&context, question, &estimate).error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(DaemonTest, AJobThatNoMachineHoldsIsAnEstimateAndARefusedSubmission) {
  // down_proj's H has 7 10^10 numbers: terabytes in f64.
  const TinyLlama wide = {.hidden = 8, .layers = 1, .kv_heads = 1, .intermediate = 262'144};
  ASSERT_TRUE(WriteTinyLlama(wide, root() / "models" / "wide").ok());
  v1::SubmitJobRequest request = Request("out", kFewWindows);
  request.mutable_spec()->set_model("wide");
  v1::EstimateJobRequest question;
  *question.mutable_spec() = request.spec();
  v1::JobEstimate estimate;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->EstimateJob(&context, question, &estimate).ok());
  EXPECT_FALSE(estimate.fits());
  EXPECT_THAT(estimate.reason(), HasSubstr("host memory: found "));
  EXPECT_GT(estimate.host_memory_bytes(), int64_t{2} << 40);
  v1::Job job;
  const grpc::Status status = Submit(request, job);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), estimate.reason());
  // Rounding to nearest needs no H.
  request.mutable_spec()->set_method(v1::METHOD_RTN);
  request.mutable_spec()->clear_corpus();
  EXPECT_EQ(Watch(MustSubmit(request).id(), 0).back().state(), v1::JOB_STATE_SUCCEEDED);
}

TEST_F(DaemonTest, SubmissionIsIdempotentByRequestId) {
  v1::SubmitJobRequest request = Request("out", kFewWindows);
  request.set_request_id("r1");
  const v1::Job first = MustSubmit(request);
  EXPECT_EQ(MustSubmit(request).id(), first.id());
  Watch(first.id(), 0);
  // The output exists by now, made by this very request.
  EXPECT_EQ(MustSubmit(request).id(), first.id());
  request.mutable_spec()->set_priority(1);
  v1::Job job;
  EXPECT_EQ(Submit(request, job).error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(DaemonTest, AnOutputThatExistsIsRefused) {
  v1::Job job;
  EXPECT_EQ(Submit(Request("tiny", kFewWindows), job).error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
  const v1::Job live = MustSubmit(Request("out", kFewWindows));
  EXPECT_EQ(Submit(Request("out", kFewWindows), job).error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
  Watch(live.id(), 0);
  EXPECT_EQ(Submit(Request("out", kFewWindows), job).error_code(),
            grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(DaemonTest, ASecondDaemonOfTheRootDoesNotStart) {
  const DaemonProcess second(NIBBLED_PATH, root());
  EXPECT_EQ(second.grpc_address(), "");
}

TEST_F(DaemonTest, APortInUseIsAStartUpError) {
  const TempFolder other;
  for (const auto& arguments :
       {std::vector<std::string>{"--metrics-listen", daemon_->metrics_address()},
        std::vector<std::string>{"--listen", daemon_->grpc_address()}}) {
    DaemonProcess second(NIBBLED_PATH, other.path(), arguments);
    EXPECT_EQ(second.grpc_address(), "") << arguments[0];
  }
}

TEST_F(DaemonTest, ADeviceThatIsNotThereIsAStartUpError) {
  const TempFolder other;
  const DaemonProcess daemon(NIBBLED_PATH, other.path(), {"--devices", "cpu,cuda:99"});
  EXPECT_EQ(daemon.grpc_address(), "");
}

struct BadInput {
  std::string name;
  std::function<void(v1::JobSpec&)> change;
  grpc::StatusCode code;
  std::string field;  // that the message begins with or names
};

TEST_F(DaemonTest, BadInputIsRefusedByField) {
  using v1::JobSpec;
  const auto kInvalid = grpc::StatusCode::INVALID_ARGUMENT;
  const auto kNotFound = grpc::StatusCode::NOT_FOUND;
  const std::vector<BadInput> cases = {
      {"unknown model", [](JobSpec& s) { s.set_model("none"); }, kNotFound, "model"},
      {"parent model", [](JobSpec& s) { s.set_model("../tiny"); }, kInvalid, "model"},
      {"absolute model", [](JobSpec& s) { s.set_model("/etc"); }, kInvalid, "model"},
      {"model version", [](JobSpec& s) { s.set_model_version(7); }, kNotFound, "model_version"},
      {"hidden output", [](JobSpec& s) { s.set_output(".x"); }, kInvalid, "output"},
      {"no output", [](JobSpec& s) { s.clear_output(); }, kInvalid, "output"},
      {"parent output", [](JobSpec& s) { s.set_output("../x"); }, kInvalid, "output"},
      {"no weights", [](JobSpec& s) { s.clear_weights(); }, kInvalid, "weights"},
      {"weights 99", [](JobSpec& s) { s.set_weights(static_cast<v1::Format>(99)); }, kInvalid,
       "weights"},
      {"no activations", [](JobSpec& s) { s.clear_activations(); }, kInvalid, "activations"},
      {"asymmetric float", [](JobSpec& s) { s.set_weights_asymmetric(true); }, kInvalid,
       "weights_asymmetric"},
      {"symmetric e4m3", [](JobSpec& s) { s.set_activations_symmetric(true); }, kInvalid,
       "activations_symmetric"},
      {"group 0", [](JobSpec& s) { s.set_group_size(0); }, kInvalid, "group_size"},
      {"group 33", [](JobSpec& s) { s.set_group_size(33); }, kInvalid, "group_size"},
      {"rounding of none",
       [](JobSpec& s) {
         s.set_scale(v1::SCALE_CONSTRAINT_NONE);
         s.set_m2_rounding(v1::M2_ROUNDING_CEIL);
       },
       kInvalid, "m2_rounding"},
      {"damping NaN", [](JobSpec& s) { s.set_damping(std::nan("")); }, kInvalid, "damping"},
      {"rank of all", [](JobSpec& s) { s.set_lorc_rank(128); }, kInvalid, "lorc_rank"},
      {"rank 129", [](JobSpec& s) { s.set_lorc_rank(129); }, kInvalid, "lorc_rank"},
      {"iterations of nothing", [](JobSpec& s) { s.set_lorc_iterations(2); }, kInvalid,
       "lorc_iterations"},
      {"search in natural order",
       [](JobSpec& s) {
         s.set_scale_search(v1::SCALE_SEARCH_DIAGONAL);
         s.set_act_order(false);
       },
       kInvalid, "scale_search"},
      {"rank -1", [](JobSpec& s) { s.set_lorc_rank(-1); }, kInvalid, "lorc_rank"},
      {"seed alone", [](JobSpec& s) { s.set_rotate_seed(1); }, kInvalid, "rotate_seed"},
      {"pattern of nothing", [](JobSpec& s) { s.add_exclude("no.such"); }, kInvalid, "exclude"},
      {"no corpus", [](JobSpec& s) { s.clear_corpus(); }, kInvalid, "corpus"},
      {"unknown corpus", [](JobSpec& s) { s.mutable_corpus()->set_name("n.txt"); }, kNotFound,
       "corpus"},
      {"parent corpus", [](JobSpec& s) { s.mutable_corpus()->set_name("../nibble.db"); }, kInvalid,
       "corpus"},
      {"range of .txt", [](JobSpec& s) { s.mutable_corpus()->set_first_text(1); }, kInvalid,
       "corpus"},
      {"no windows", [](JobSpec& s) { s.set_windows(0); }, kInvalid, "windows"},
      {"too many windows", [](JobSpec& s) { s.set_windows(10000); }, kInvalid, "windows"},
      {"window 1", [](JobSpec& s) { s.set_window(1); }, kInvalid, "window"},
      {"window over context", [](JobSpec& s) { s.set_window(129); }, kInvalid, "window"},
      {"empty label", [](JobSpec& s) { (*s.mutable_labels())[""] = "x"; }, kInvalid, "labels"},
  };
  for (const BadInput& bad : cases) {
    SCOPED_TRACE(bad.name);
    v1::SubmitJobRequest request = Request("out", kFewWindows);
    bad.change(*request.mutable_spec());
    v1::Job job;
    const grpc::Status status = Submit(request, job);
    EXPECT_EQ(status.error_code(), bad.code) << status.error_message();
    EXPECT_NE(status.error_message().find(bad.field), std::string::npos) << status.error_message();
    EXPECT_NE(status.error_message().find("expected"), std::string::npos) << status.error_message();
  }
  grpc::ClientContext context;
  v1::ListJobsResponse list;
  EXPECT_TRUE(stub_->ListJobs(&context, v1::ListJobsRequest(), &list).ok());
  EXPECT_EQ(list.jobs_size(), 0);
}

}  // namespace
}  // namespace nibble
