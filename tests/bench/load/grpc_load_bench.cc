// The same load over gRPC: on a daemon of its own on loopback, or on one that runs.
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <stdlib.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nibble/v1/inference.grpc.pb.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "tests/bench/load/load_bench.h"
#include "tests/bench/load/processor_time.h"
#include "tests/bench/model/generated_model.h"
#include "tests/children.h"
#include "tests/integration/daemon_process.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr char kExamples[] =
    "examples:\n"
    "  grpc_load_bench --model artifacts/smollm2-w4a8 --concurrency 1,2,4,8\n"
    "  grpc_load_bench --shape tiny --concurrency 200 --connections 200\n"
    "  grpc_load_bench --address 127.0.0.1:8500 --name smollm2-w4a8 --rate 0.5,1\n";

struct Options {
  LoadOptions load;
  GeneratedModel generated = {.shape = ""};
  fs::path model;
  std::string device = "cpu";
  std::string address;
  std::string name;
  pid_t pid = 0;
  int connections = 1;
};

// Deletes itself.
class Call : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Call(v1::GenerateRequest request, absl::Time deadline, LoadTarget::OnTokens on_tokens,
       LoadTarget::OnEnd on_end)
      : request_(std::move(request)), on_tokens_(std::move(on_tokens)), on_end_(std::move(on_end)) {
    context_.set_deadline(absl::ToChronoTime(deadline));
  }

  void Start(v1::InferenceService::Stub& stub) {
    stub.async()->Generate(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (response_.token_ids_size() > 0) on_tokens_(response_.token_ids_size());
    StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    // Told last: who waits for the end may then end the library.
    const LoadTarget::OnEnd on_end = std::move(on_end_);
    // gRPC's codes and Abseil's have the same numbers.
    const absl::Status end(static_cast<absl::StatusCode>(status.error_code()),
                           status.error_message());
    delete this;
    on_end(end);
  }

 private:
  grpc::ClientContext context_;
  const v1::GenerateRequest request_;
  v1::GenerateResponse response_;
  const LoadTarget::OnTokens on_tokens_;
  LoadTarget::OnEnd on_end_;
};

class DaemonTarget : public LoadTarget {
 public:
  // pid 0: its processor time is not known.
  DaemonTarget(const std::string& address, std::string model, pid_t pid, int connections)
      : model_(std::move(model)), pid_(pid) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // or all would share one connection
    for (int i = 0; i < connections; ++i) {
      stubs_.push_back(v1::InferenceService::NewStub(
          grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments)));
    }
  }

  void Start(const LoadRequest& request, absl::Time deadline, OnTokens on_tokens,
             OnEnd on_end) override {
    v1::GenerateRequest message;
    message.set_model(model_);
    message.mutable_token_ids()->mutable_ids()->Add(request.prompt.begin(), request.prompt.end());
    message.set_max_tokens(static_cast<int32_t>(request.max_tokens));
    message.set_ignore_eos(true);
    auto* call = new Call(std::move(message), deadline, std::move(on_tokens), std::move(on_end));
    call->Start(*stubs_[started_++ % stubs_.size()]);
  }

  absl::StatusOr<double> ProcessorSeconds() override {
    if (pid_ == 0) return absl::NotFoundError("daemon: its process is not known");
    NIBBLE_ASSIGN_OR_RETURN(double seconds, nibble::ProcessorSeconds(pid_));
    for (const pid_t runner : ChildrenOf(pid_, "runner")) {
      NIBBLE_ASSIGN_OR_RETURN(const double more, nibble::ProcessorSeconds(runner));
      seconds += more;
    }
    return seconds;
  }

 private:
  const std::string model_;
  const pid_t pid_;
  std::vector<std::unique_ptr<v1::InferenceService::Stub>> stubs_;
  size_t started_ = 0;
};

class TemporaryRoot {
 public:
  TemporaryRoot() {
    std::string pattern = fs::temp_directory_path() / "nibble-load-XXXXXX";
    if (mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  ~TemporaryRoot() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryRoot(const TemporaryRoot&) = delete;
  TemporaryRoot& operator=(const TemporaryRoot&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

absl::Status RunOnOwnDaemon(Options options) {
  const TemporaryRoot root;
  if (root.path().empty()) return absl::UnavailableError("can't make a temporary folder");
  NIBBLE_ASSIGN_OR_RETURN(const Device device, ParseDevice(options.device));
  std::string name = options.generated.shape;
  if (options.model.empty()) {
    std::fprintf(stderr, "making %s, %s\n", name.c_str(), options.generated.scheme.c_str());
    if (options.generated.folder.empty()) options.generated.folder = root.path() / "made";
    NIBBLE_ASSIGN_OR_RETURN(options.model, MakeGeneratedModel(options.generated, device));
  } else {
    options.model = fs::canonical(options.model);
    name = options.model.filename();
  }
  fs::create_directories(root.path() / "models");
  fs::create_directory_symlink(options.model, root.path() / "models" / name);
  const fs::path nibbled = fs::read_symlink("/proc/self/exe").parent_path() / "nibbled";
  const DaemonProcess daemon(nibbled, root.path(),
                             {"--device", options.device, "--log-level", "warn"});
  if (daemon.grpc_address().empty()) {
    return absl::UnavailableError(StrCat(nibbled.string(), " did not start"));
  }
  DaemonTarget target(daemon.grpc_address(), name, daemon.pid(), options.connections);
  return RunLoads(target, options.load, "grpc", name);
}

absl::Status Run(const Options& options) {
  NIBBLE_RETURN_IF_ERROR(CheckLoadOptions(options.load));
  if (!options.address.empty()) {
    DaemonTarget target(options.address, options.name, options.pid, options.connections);
    return RunLoads(target, options.load, "grpc", options.name);
  }
  if (options.model.empty() && options.generated.shape.empty()) {
    return absl::InvalidArgumentError("model: found none, expected --model, --shape or --address");
  }
  return RunOnOwnDaemon(options);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  nibble::Options options;
  CLI::App app("Puts a load on a daemon over gRPC and measures latency and throughput");
  app.footer(nibble::kExamples);
  auto* model = app.add_option("--model", options.model,
                               "Artifact or checkpoint folder, for a daemon of its own")
                    ->check(CLI::ExistingDirectory);
  AddGeneratedModelOptions(app, options.generated);
  auto* shape = app.get_option("--shape")->excludes(model);
  app.add_option("--device", options.device, "Of its own daemon: cpu, cuda:0, ..")
      ->capture_default_str();
  auto* address = app.add_option("--address", options.address, "A daemon that runs")
                      ->excludes(model)
                      ->excludes(shape);
  auto* name = app.add_option("--name", options.name, "The model's name there");
  address->needs(name);
  name->needs(address);
  app.add_option("--pid", options.pid, "Its process, where that is on this machine, for CPU time")
      ->needs(address);
  app.add_option("--connections", options.connections, "That the requests take in turns")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  AddLoadOptions(app, options.load);
  CLI11_PARSE(app, argc, argv);
  return nibble::ExitCode("grpc_load_bench", nibble::Run(options));
}
