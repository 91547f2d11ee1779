// A checkpoint's way between daemons that share no disk: pushed, quantized, pulled, served
// elsewhere.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <fstream>
#include <memory>
#include <sstream>

#include "client/cli/cli.h"
#include "client/cpp/client.h"
#include "client/cpp/transfer.h"
#include "quant/base/sha256.h"
#include "quant/model/checkpoint/json.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/integration/daemon_process.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::Not;

void Ignore(const TransferProgress&) {}

class Server {
 public:
  explicit Server(std::filesystem::path root, const std::vector<std::string>& arguments = {})
      : root_(std::move(root)),
        process_(NIBBLED_PATH, root_, arguments),
        client_({.address = process_.grpc_address()}) {
    EXPECT_NE(process_.grpc_address(), "");
  }
  std::string address() const { return process_.grpc_address(); }
  Client& client() { return client_; }
  DaemonProcess& process() { return process_; }
  const std::filesystem::path& root() const { return root_; }

 private:
  const std::filesystem::path root_;
  DaemonProcess process_;
  Client client_;
};

class HandoverTest : public testing::Test {
 protected:
  HandoverTest() {
    EXPECT_TRUE(WriteTinyLlama({.layers = 2}, source_).ok());
    std::ofstream corpus(corpus_);
    for (int i = 0; i < 3000; ++i) corpus << static_cast<char>('a' + i * i % 26);
  }
  std::filesystem::path Root(const std::string& name) {
    std::filesystem::path root = folder_.path() / name;
    std::filesystem::create_directories(root);
    return root;
  }
  // Log-probabilities of a text and of the most tokens that a server tells at each place.
  static std::vector<float> Logprobs(Client& client, const std::string& model) {
    v1::ScoreRequest request;
    request.set_model(model);
    request.set_text("what is served is what is evaluated");
    request.set_top_logprobs(20);
    const auto score = client.Score(request);
    EXPECT_TRUE(score.ok()) << score.status();
    std::vector<float> values;
    for (const auto& logprob : score->logprobs()) {
      values.push_back(logprob.logprob());
      EXPECT_EQ(logprob.top_size(), 20);
      for (const auto& top : logprob.top()) values.push_back(top.logprob());
    }
    return values;
  }
  std::string Cli(const Server& server, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"--server", server.address()});
    std::ostringstream out, err;
    EXPECT_EQ(RunCli(arguments, {.out = out, .err = err}), 0) << err.str();
    return out.str();
  }

  TempFolder folder_;
  std::filesystem::path source_ = folder_.path() / "source";
  std::filesystem::path corpus_ = folder_.path() / "text.txt";
};

TEST_F(HandoverTest, PushedQuantizedPulledAndServedElsewhere) {
  Server maker(Root("maker"));
  ASSERT_TRUE(PushModel(maker.client(), source_, "tiny", Ignore).ok());
  ASSERT_TRUE(PushCorpus(maker.client(), corpus_, "c.txt", Ignore).ok());
  v1::ListCorporaResponse corpora = maker.client().ListCorpora({}).value();
  ASSERT_EQ(corpora.corpora_size(), 1);
  EXPECT_EQ(corpora.corpora(0).bytes(), 3000);

  v1::SubmitJobRequest submit;
  v1::JobSpec& spec = *submit.mutable_spec();
  spec.set_model("tiny");
  spec.set_output("small");
  spec.set_weights(v1::FORMAT_E2M1);
  spec.set_activations(v1::ACTIVATION_FORMAT_E4M3);
  spec.set_group_size(32);
  spec.mutable_corpus()->set_name("c.txt");
  spec.set_windows(4);
  spec.set_window(64);
  const v1::Job job = maker.client().SubmitJob(submit).value();
  v1::JobEvent last;
  v1::WatchJobRequest watch;
  watch.set_job_id(job.id());
  ASSERT_TRUE(maker.client()
                  .WatchJob(watch,
                            [&](const v1::JobEvent& event) {
                              last = event;
                              return true;
                            })
                  .ok());
  ASSERT_EQ(last.state(), v1::JOB_STATE_SUCCEEDED) << last.failure().message();

  const std::filesystem::path pulled = folder_.path() / "pulled";
  ASSERT_TRUE(PullModel(maker.client(), "small", pulled, Ignore).ok());
  Server other(Root("other"));
  ASSERT_TRUE(PushModel(other.client(), pulled, "copy", Ignore).ok());
  v1::GetModelRequest get;
  get.set_name("copy");
  get.set_include_report(true);
  const v1::Model copy = other.client().GetModel(get).value();
  EXPECT_EQ(copy.versions(0).kind(), v1::MODEL_KIND_ARTIFACT);
  EXPECT_EQ(copy.versions(0).spec().group_size(), 32);
  EXPECT_EQ(copy.versions(0).report_size(), 2);
  EXPECT_EQ(copy.versions(0).job_id(), "");
  EXPECT_EQ(Logprobs(other.client(), "copy"), Logprobs(maker.client(), "small"));
  for (const auto& file : std::filesystem::directory_iterator(pulled)) {
    const std::filesystem::path name = file.path().filename();
    const std::string sum = Sha256File(maker.root() / "artifacts" / "small" / name).value();
    EXPECT_EQ(Sha256File(other.root() / "artifacts" / "copy" / name).value(), sum) << name;
  }

  // Files are taken byte for byte; a flipped bit is not taken at all.
  std::fstream file(pulled / "report.json", std::ios::in | std::ios::out);
  file.put('?');
  file.close();
  const absl::Status flipped = PushModel(other.client(), pulled, "flipped", Ignore);
  EXPECT_EQ(flipped.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(flipped.message(), HasSubstr("report.json"));
  get.set_name("flipped");
  EXPECT_TRUE(absl::IsNotFound(other.client().GetModel(get).status()));
}

TEST_F(HandoverTest, APushKilledInTheMiddleGoesOn) {
  const std::filesystem::path root = Root("killed");
  std::filesystem::path weights = source_ / "model.safetensors";
  const auto size = static_cast<int64_t>(std::filesystem::file_size(weights));
  ASSERT_TRUE(WriteTinyLlama({.hidden = 256, .layers = 4, .intermediate = 1024}, source_).ok());
  int64_t before = 0;
  {
    // The daemon dies by kill -9 while the weights come.
    Server server(root);
    const absl::Status broken =
        PushModel(server.client(), source_, "tiny", [&](const TransferProgress& progress) {
          if (before == 0 && progress.done > progress.total / 2) {
            before = progress.done;
            server.process().Stop(SIGKILL);
          }
        });
    EXPECT_EQ(broken.code(), absl::StatusCode::kUnavailable) << broken;
  }
  ASSERT_GT(before, size / 2);
  Server server(root);
  v1::GetModelRequest get;
  get.set_name("tiny");
  EXPECT_TRUE(absl::IsNotFound(server.client().GetModel(get).status()));
  int64_t first = 0;
  ASSERT_TRUE(PushModel(server.client(), source_, "tiny", [&](const TransferProgress& progress) {
                if (first == 0) first = progress.done;
              }).ok());
  EXPECT_GT(first, int64_t{1} << 20) << "began anew";
  EXPECT_EQ(Sha256File(root / "models" / "tiny" / "model.safetensors").value(),
            Sha256File(weights).value());
}

// `nibble`, whose lines of progress wait to be read: it goes on only as they are.
class CliProcess {
 public:
  using Environment = std::vector<std::pair<std::string, std::string>>;
  CliProcess(const std::string& server, std::vector<std::string> words,
             const Environment& environment = {}) {
    std::array<int, 2> ends{};
    EXPECT_EQ(pipe(ends.data()), 0);
    EXPECT_GT(fcntl(ends[1], F_SETPIPE_SZ, 4096), 0);
    words.insert(words.begin(), {NIBBLE_PATH, "--server", server});
    std::vector<char*> argv;
    for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      setpgid(0, 0);
      for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
      dup2(ends[1], STDERR_FILENO);
      execv(argv[0], argv.data());
      _exit(127);
    }
    close(ends[1]);
    progress_ = fdopen(ends[0], "r");
  }
  ~CliProcess() { fclose(progress_); }
  CliProcess(const CliProcess&) = delete;
  CliProcess& operator=(const CliProcess&) = delete;

  bool ReadLine() {
    std::array<char, 512> line{};
    return fgets(line.data(), line.size(), progress_) != nullptr;
  }
  void Kill() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  // As a terminal does: it and what it started.
  void Interrupt() {
    kill(-pid_, SIGINT);
    waitpid(pid_, nullptr, 0);
  }
  // Its machine still has the connection, and nobody answers on it.
  void Freeze() { kill(pid_, SIGSTOP); }

 private:
  pid_t pid_ = 0;
  FILE* progress_ = nullptr;
};

TEST_F(HandoverTest, AClientKilledInTheMiddleGoesOn) {
  // 64 messages of a MiB, each with a line of more than 128 bytes: the pipe holds less than 32.
  const std::string name(120, 'a');
  std::ofstream(source_ / name) << 'a';
  std::filesystem::resize_file(source_ / name, int64_t{64} << 20);
  Server server(Root("server"));
  CliProcess push(server.address(), {"models", "push", source_.string(), "tiny"});
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(push.ReadLine());
  push.Kill();
  v1::GetModelRequest get;
  get.set_name("tiny");
  EXPECT_TRUE(absl::IsNotFound(server.client().GetModel(get).status()));
  int64_t first = 0;
  const auto keep_first = [&](const TransferProgress& progress) {
    if (first == 0) first = progress.done;
  };
  absl::Status status;
  do {  // until the server has seen the first one's end
    status = PushModel(server.client(), source_, "tiny", keep_first);
  } while (absl::IsAborted(status));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_GT(first, int64_t{2} << 20) << "began anew";
  EXPECT_LT(first, int64_t{50} << 20) << "was not killed in the middle";
  EXPECT_EQ(Sha256File(server.root() / "models" / "tiny" / name).value(),
            Sha256File(source_ / name).value());
}

TEST_F(HandoverTest, AnInterruptedImportLeavesNothing) {
  Server server(Root("server"));
  const std::filesystem::path temporary = Root("temporary");
  const std::filesystem::path python = folder_.path() / "python";
  // -m nibble_import hf SOURCE OUT, in the midst of it.
  std::ofstream(python) << "#!/bin/sh\nmkdir \"$5\" && echo \"$5\" >&2 && exec sleep 1000\n";
  std::filesystem::permissions(python, std::filesystem::perms::owner_all);
  CliProcess import(server.address(), {"import", "hf", source_.string(), "tiny"},
                    {{"NIBBLE_PYTHON", python.string()}, {"TMPDIR", temporary.string()}});
  ASSERT_TRUE(import.ReadLine());
  EXPECT_FALSE(std::filesystem::is_empty(temporary));
  import.Interrupt();
  const auto begin = std::chrono::steady_clock::now();
  while (!std::filesystem::is_empty(temporary)) {
    ASSERT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
  }
}

TEST_F(HandoverTest, AnImportOfATakenNameEndsBeforeItConverts) {
  Server server(Root("server"));
  ASSERT_TRUE(PushModel(server.client(), source_, "tiny", Ignore).ok());
  std::ostringstream out, err;
  EXPECT_EQ(RunCli({"--server", server.address(), "import", "hf", "/nowhere", "tiny"},
                   {.out = out, .err = err}),
            1);
  EXPECT_THAT(err.str(), HasSubstr("found a model 'tiny' on the server"));
}

TEST_F(HandoverTest, AClientThatFellSilentIsGivenUp) {
  const std::string name(120, 'a');
  std::ofstream(source_ / name) << 'a';
  std::filesystem::resize_file(source_ / name, int64_t{64} << 20);
  Server server(Root("server"), {"--keepalive-seconds", "1"});
  CliProcess push(server.address(), {"models", "push", source_.string(), "tiny"});
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(push.ReadLine());
  push.Freeze();
  const auto begin = std::chrono::steady_clock::now();
  absl::Status status;
  do {  // until the upload is free again
    status = PushModel(server.client(), source_, "tiny", Ignore);
  } while (absl::IsAborted(status) &&
           std::chrono::steady_clock::now() - begin < std::chrono::seconds(60));
  EXPECT_TRUE(status.ok()) << status;
  push.Kill();
}

TEST_F(HandoverTest, TheCommandLineImportsPushesAndPulls) {
  Server server(Root("server"));
  const std::filesystem::path fixtures = NIBBLE_FIXTURES;
  Cli(server, {"import", "hf", fixtures / "checkpoints" / "opt-1.3b", "opt-1.3b"});
  const Json expected = ReadJsonFile(fixtures / "checkpoints" / "opt-1.3b.expected.json").value();
  ASSERT_GT(expected["tokens"].size(), 5u);
  for (const Json& one : expected["tokens"]) {
    v1::TokenizeRequest request;
    request.set_model("opt-1.3b");
    request.set_text(one["text"].get<std::string>());
    const v1::TokenizeResponse tokens = server.client().Tokenize(request).value();
    EXPECT_THAT(tokens.token_ids(), ElementsAreArray(one["ids"].get<std::vector<int32_t>>()));
  }
  const std::filesystem::path pulled = folder_.path() / "pulled";
  Cli(server, {"models", "pull", "opt-1.3b", pulled});
  Cli(server, {"models", "push", pulled, "again"});
  EXPECT_THAT(Cli(server, {"models", "list"}), AllOf(HasSubstr("opt-1.3b"), HasSubstr("again")));

  Cli(server, {"corpora", "push", corpus_});
  EXPECT_THAT(Cli(server, {"corpora", "list"}), HasSubstr("text.txt"));
  Cli(server, {"corpora", "delete", "text.txt"});
  EXPECT_THAT(Cli(server, {"corpora", "list"}), Not(HasSubstr("text.txt")));
}

TEST_F(HandoverTest, APullTakesUpWhatAnEarlierOneLeft) {
  Server server(Root("server"));
  ASSERT_TRUE(PushModel(server.client(), source_, "tiny", Ignore).ok());
  const std::filesystem::path staging = folder_.path() / ".out.partial";
  std::filesystem::create_directories(staging);
  std::filesystem::copy(source_ / "model.safetensors", staging / "model.safetensors");
  std::filesystem::resize_file(staging / "model.safetensors", 1000);
  int64_t first = 0;
  const std::filesystem::path out = folder_.path() / "out";
  ASSERT_TRUE(PullModel(server.client(), "tiny", out, [&](const TransferProgress& progress) {
                if (first == 0) first = progress.done;
              }).ok());
  EXPECT_GT(first, 1000);
  for (const auto& file : std::filesystem::directory_iterator(source_)) {
    EXPECT_EQ(Sha256File(out / file.path().filename()).value(), Sha256File(file.path()).value());
  }
  EXPECT_EQ(PullModel(server.client(), "tiny", out, Ignore).code(),
            absl::StatusCode::kAlreadyExists);
  // Leftovers of other files are given up.
  std::filesystem::create_directories(staging);
  std::ofstream(staging / "other.bin") << "x";
  EXPECT_TRUE(PullModel(server.client(), "tiny", folder_.path() / "out2", Ignore).ok());
  std::filesystem::remove_all(out);
  EXPECT_TRUE(PullModel(server.client(), "tiny", out, Ignore).ok());
  EXPECT_TRUE(
      absl::IsNotFound(PullModel(server.client(), "nobody", folder_.path() / "out3", Ignore)));
  EXPECT_FALSE(std::filesystem::exists(folder_.path() / ".out3.partial"));
}

TEST_F(HandoverTest, AFolderMayBeNamedWithASlash) {
  Server server(Root("server"));
  ASSERT_TRUE(PushModel(server.client(), source_ / "", "tiny", Ignore).ok());
  const std::filesystem::path out = folder_.path() / "out";
  const absl::Status pulled = PullModel(server.client(), "tiny", out / "", Ignore);
  ASSERT_TRUE(pulled.ok()) << pulled;
  EXPECT_EQ(Sha256File(out / "config.json").value(), Sha256File(source_ / "config.json").value());
  EXPECT_FALSE(std::filesystem::exists(folder_.path() / ".out.partial"));
}

TEST_F(HandoverTest, AFileThatLeadsNowhereIsNamed) {
  Server server(Root("server"));
  std::filesystem::create_symlink(folder_.path() / "gone", source_ / "a.json");
  const absl::Status status = PushModel(server.client(), source_, "tiny", Ignore);
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("a.json"));
}

// Nor does it hide the others.
TEST_F(HandoverTest, AnArtifactThatCanNotBeShownIsRefused) {
  Server server(Root("server"));
  ASSERT_TRUE(PushModel(server.client(), source_, "tiny", Ignore).ok());
  std::ofstream(source_ / "report.json")
      << R"({"parameters": 1, "linear_bits_per_weight": 4, "model_bits_per_weight": 4})";
  const std::string sum = Sha256File(source_ / "model.safetensors").value();
  std::ofstream(source_ / "nibble.json")
      << R"({"format_version": 1, "files": {"model.safetensors": ")" << sum
      << R"("}, "spec": {"lorc_rank": 0, "excluded": []}})";
  const absl::Status status = PushModel(server.client(), source_, "bare", Ignore);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(status.message(), HasSubstr("method"));
  // One that an operator has put there.
  std::filesystem::copy(source_, server.root() / "artifacts" / "bare");
  const auto models = server.client().ListModels({});
  ASSERT_TRUE(models.ok()) << models.status();
  ASSERT_EQ(models->models_size(), 1);
  EXPECT_EQ(models->models(0).name(), "tiny");
}

TEST_F(HandoverTest, TheQuotaIsToldAtTheStart) {
  Server server(Root("full"), {"--quota-bytes", "10000"});
  const absl::Status status = PushModel(server.client(), source_, "tiny", Ignore);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("quota: found"));
}

TEST_F(HandoverTest, CorporaAreDeletedByName) {
  Server server(Root("server"));
  ASSERT_TRUE(PushCorpus(server.client(), corpus_, "c.txt", Ignore).ok());
  v1::DeleteCorpusRequest remove;
  remove.set_name("c.txt");
  EXPECT_TRUE(server.client().DeleteCorpus(remove).ok());
  EXPECT_TRUE(absl::IsNotFound(server.client().DeleteCorpus(remove)));
  remove.set_name("../c.txt");
  EXPECT_TRUE(absl::IsInvalidArgument(server.client().DeleteCorpus(remove)));
}

}  // namespace
}  // namespace nibble
