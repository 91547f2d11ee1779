// The built nibbled, driven over gRPC as a client does.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "nibble/v1/quantization.grpc.pb.h"
#include "tests/fixtures/artifacts.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/integration/daemon_process.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr int kWindow = 64;
constexpr int kFewWindows = 8;
constexpr int kLongLayers = 6;
constexpr int kManyWindows = 300;  // enough for every layer to take a while

class DaemonTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteTinyLlama({}, root() / "models" / "tiny").ok());
    std::filesystem::create_directories(root() / "corpora");
    std::ofstream corpus(root() / "corpora" / "text.txt");
    // One token a byte.
    for (int i = 0; i < kManyWindows * kWindow / 8; ++i) corpus << "word" << 1000 + i % 9000 << " ";
    corpus.close();
    Start();
  }

  std::filesystem::path root() const { return folder_.path(); }
  bool HasStaging() const {
    for (const auto& entry : std::filesystem::directory_iterator(root() / "artifacts")) {
      if (entry.path().filename().string().starts_with(".staging-")) return true;
    }
    return false;
  }

  void Start(const std::vector<std::string>& arguments = {}) {
    daemon_ = std::make_unique<DaemonProcess>(NIBBLED_PATH, root(), arguments);
    ASSERT_NE(daemon_->grpc_address(), "");
    stub_ = v1::QuantizationService::NewStub(
        grpc::CreateChannel(daemon_->grpc_address(), grpc::InsecureChannelCredentials()));
  }

  static v1::SubmitJobRequest Request(const std::string& output, int windows) {
    v1::SubmitJobRequest request;
    v1::JobSpec& spec = *request.mutable_spec();
    spec.set_model("tiny");
    spec.set_output(output);
    spec.set_weights(v1::FORMAT_E2M1);
    spec.set_activations(v1::ACTIVATION_FORMAT_E4M3);
    spec.set_group_size(32);
    spec.mutable_corpus()->set_name("text.txt");
    spec.set_windows(windows);
    spec.set_window(kWindow);
    return request;
  }

  // Seconds of work: something else can be done meanwhile.
  v1::SubmitJobRequest LongRequest(const std::string& output) const {
    const TinyLlama large = {.hidden = 256, .layers = kLongLayers, .intermediate = 512};
    const auto model = root() / "models" / "large";
    EXPECT_TRUE(std::filesystem::exists(model) || WriteTinyLlama(large, model).ok());
    v1::SubmitJobRequest request = Request(output, kManyWindows);
    request.mutable_spec()->set_model("large");
    return request;
  }

  grpc::Status Submit(const v1::SubmitJobRequest& request, v1::Job& job) {
    grpc::ClientContext context;
    return stub_->SubmitJob(&context, request, &job);
  }
  v1::Job MustSubmit(const v1::SubmitJobRequest& request) {
    v1::Job job;
    const grpc::Status status = Submit(request, job);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return job;
  }
  v1::Job Get(const std::string& id) {
    grpc::ClientContext context;
    v1::GetJobRequest request;
    request.set_job_id(id);
    request.set_include_layers(true);
    v1::Job job;
    EXPECT_TRUE(stub_->GetJob(&context, request, &job).ok());
    return job;
  }
  void Cancel(const std::string& id) {
    grpc::ClientContext context;
    v1::CancelJobRequest request;
    request.set_job_id(id);
    v1::Job job;
    EXPECT_TRUE(stub_->CancelJob(&context, request, &job).ok());
  }

  // Watches from `after` to the stream's end, calling `act` on each event; returns them.
  std::vector<v1::JobEvent> Watch(const std::string& id, int64_t after,
                                  const std::function<void(const v1::JobEvent&)>& act = nullptr) {
    grpc::ClientContext context;
    v1::WatchJobRequest request;
    request.set_job_id(id);
    request.set_after_sequence(after);
    const auto reader = stub_->WatchJob(&context, request);
    std::vector<v1::JobEvent> events;
    for (v1::JobEvent event; reader->Read(&event);) {
      EXPECT_EQ(event.sequence(), after + 1 + static_cast<int64_t>(events.size()));
      events.push_back(event);
      if (act != nullptr) act(event);
    }
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return events;
  }

  // Watches until so many layers are finished; the sequence of the last event seen.
  int64_t UntilLayer(const std::string& id, int layers) {
    grpc::ClientContext context;
    v1::WatchJobRequest request;
    request.set_job_id(id);
    const auto reader = stub_->WatchJob(&context, request);
    v1::JobEvent event;
    while (reader->Read(&event) && event.progress().layer() < layers) {
    }
    EXPECT_EQ(event.progress().layer(), layers);
    context.TryCancel();
    reader->Finish();
    return event.sequence();
  }

  // Watches a job for so long; true when it ended.
  bool EndsWithin(const std::string& id, double seconds) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::microseconds(static_cast<int64_t>(1e6 * seconds)));
    v1::WatchJobRequest request;
    request.set_job_id(id);
    const auto reader = stub_->WatchJob(&context, request);
    for (v1::JobEvent event; reader->Read(&event);) {
    }
    return reader->Finish().ok();
  }

  TempFolder folder_;
  std::unique_ptr<DaemonProcess> daemon_;
  std::unique_ptr<v1::QuantizationService::Stub> stub_;
};

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

// The messages of an attempt's events.
std::vector<std::string> Messages(const std::vector<v1::JobEvent>& events, int attempt) {
  std::vector<std::string> messages;
  for (const v1::JobEvent& event : events) {
    if (event.attempt() == attempt && !event.message().empty()) messages.push_back(event.message());
  }
  return messages;
}

TEST_F(DaemonTest, AKilledWorkersJobGoesOnAtItsLayerAndMakesTheSameFiles) {
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

TEST_F(DaemonTest, AJobCancelledWhileItWaitsToGoOnLeavesNothing) {
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

TEST_F(DaemonTest, InterruptedAtRandomMomentsItMakesTheSameFiles) {
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

TEST_F(DaemonTest, AMoreUrgentJobComesFirstAndTheOtherGoesOn) {
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

TEST_F(DaemonTest, TwoWorkersRunTwoJobsAtOnceAndAKilledOnesGoesOn) {
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

TEST_F(DaemonTest, ACheckpointTruncatedUnderTheJobFailsItAndLeavesNothing) {
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

TEST_F(DaemonTest, AJobWithoutRoomOnDiskFailsAndLeavesNothing) {
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

TEST_F(DaemonTest, AJobThatLosesThreeWorkersFails) {
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

TEST_F(DaemonTest, ACancelledJobLeavesNothing) {
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

TEST_F(DaemonTest, AStoppedDaemonsJobGoesOnWithTheNextOne) {
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

TEST_F(DaemonTest, AKilledDaemonsJobGoesOnWithTheNextOne) {
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
  const auto kUnserved = grpc::StatusCode::UNIMPLEMENTED;
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
      {"rank -1", [](JobSpec& s) { s.set_lorc_rank(-1); }, kInvalid, "lorc_rank"},
      {"rotate", [](JobSpec& s) { s.set_rotate(true); }, kUnserved, "rotate"},
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
