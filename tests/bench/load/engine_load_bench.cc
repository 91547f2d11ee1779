// A load on the engine in this process: no RPC, on a CPU or a GPU.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "server/engine/engine.h"
#include "tests/bench/load/load_bench.h"
#include "tests/bench/load/processor_time.h"
#include "tests/bench/model/generated_model.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;

constexpr char kExamples[] =
    "examples:\n"
    "  engine_load_bench --model artifacts/smollm2-w4a8 --concurrency 1,2,4,8\n"
    "  engine_load_bench --model artifacts/smollm2-w4a8 --mix 1000+128/128 --rate 0.5,1\n"
    "  engine_load_bench --device cuda:0 --shape llama-3-8b --concurrency 64,128,256,512 \\\n"
    "      --max-sequences 512 --json load.jsonl\n";

struct Options {
  LoadOptions load;
  GeneratedModel generated = {.shape = "",
                              .folder = fs::temp_directory_path() / "nibble-load-bench"};
  fs::path model;
  std::string device = "cpu";
  RunnerOptions runner;
  bool e4m3_cache = false;
};

absl::Status EndStatus(const EngineEvent& event) {
  switch (event.finish) {
    case FinishReason::kStop:
    case FinishReason::kLength:
      return absl::OkStatus();
    case FinishReason::kDeadline:
      return absl::DeadlineExceededError("request: the load's limit passed before its last token");
    case FinishReason::kCancelled:
      return absl::CancelledError("request: cancelled");
    default:
      return event.status;
  }
}

class EngineTarget : public LoadTarget {
 public:
  EngineTarget(std::unique_ptr<ModelRunner> runner, const RunnerOptions& options)
      : engine_(Engine::Create(std::move(runner),
                               {.schedule = {.max_step_tokens = options.max_step_tokens,
                                             .max_sequences = options.max_sequences}})) {}

  void Start(const LoadRequest& request, absl::Time deadline, OnTokens on_tokens,
             OnEnd on_end) override {
    EngineRequest spec = {
        .prompt = request.prompt, .max_tokens = request.max_tokens, .deadline = deadline};
    const auto tell = [on_tokens = std::move(on_tokens), on_end](const EngineEvent& event) {
      if (!event.tokens.empty()) on_tokens(static_cast<int64_t>(event.tokens.size()));
      if (event.finish != FinishReason::kNone) on_end(EndStatus(event));
      return Flow::kContinue;
    };
    const auto id = engine_->Submit(std::move(spec), tell);
    if (!id.ok()) on_end(id.status());
  }

  absl::StatusOr<double> ProcessorSeconds() override { return nibble::ProcessorSeconds(getpid()); }

 private:
  const std::unique_ptr<Engine> engine_;
};

absl::Status Run(Options options) {
  NIBBLE_RETURN_IF_ERROR(CheckLoadOptions(options.load));
  if (options.model.empty() && options.generated.shape.empty()) {
    return absl::InvalidArgumentError("model: found none, expected --model or --shape");
  }
  NIBBLE_ASSIGN_OR_RETURN(options.runner.device, ParseDevice(options.device));
  if (options.e4m3_cache) options.runner.kv_format = KvFormat::kE4M3;
  std::string name = options.model.filename().string();
  if (options.model.empty()) {
    std::fprintf(stderr, "making %s, %s\n", options.generated.shape.c_str(),
                 options.generated.scheme.c_str());
    NIBBLE_ASSIGN_OR_RETURN(options.model,
                            MakeGeneratedModel(options.generated, options.runner.device));
    name = options.generated.shape;
  }
  std::fprintf(stderr, "loading %s\n", name.c_str());
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<ModelRunner> runner,
                          MakeRunner(options.model, options.runner));
  if (!options.generated.shape.empty()) fs::remove_all(options.generated.folder);
  const KvPool pool = runner->kv_pool();
  std::printf("%s on %s: weights %.1f MB, cache of %lld tokens, %.1f MB\n", name.c_str(),
              options.device.c_str(), 1e-6 * static_cast<double>(runner->weight_bytes()),
              static_cast<long long>(pool.blocks) * pool.block_size,
              1e-6 * static_cast<double>(pool.bytes));
  EngineTarget target(std::move(runner), options.runner);
  return RunLoads(target, options.load, "engine", name);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  nibble::Options options;
  CLI::App app("Puts a load on the engine in this process and measures latency and throughput");
  app.footer(nibble::kExamples);
  auto* model = app.add_option("--model", options.model, "Artifact or checkpoint folder");
  AddGeneratedModelOptions(app, options.generated);
  app.get_option("--shape")->excludes(model);
  app.add_option("--device", options.device, "cpu, cuda:0, ..")->capture_default_str();
  app.add_option("--kv-bytes", options.runner.kv_bytes,
                 "KV cache (0: 1 GiB on a CPU, what is free on a GPU)");
  app.add_flag("--e4m3-cache", options.e4m3_cache, "Keys and values in 8 bits, on a GPU");
  app.add_option("--max-sequences", options.runner.max_sequences, "Of a step")
      ->capture_default_str();
  app.add_option("--step-tokens", options.runner.max_step_tokens, "Of a step, at most")
      ->capture_default_str();
  AddLoadOptions(app, options.load);
  CLI11_PARSE(app, argc, argv);
  return nibble::ExitCode("engine_load_bench", nibble::Run(std::move(options)));
}
