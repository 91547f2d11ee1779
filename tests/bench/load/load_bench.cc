#include "tests/bench/load/load_bench.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "absl/strings/str_format.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "tests/bench/load/load_report.h"

namespace nibble {
namespace {

// One line that is written over on a terminal; else a line now and then.
class ProgressLine {
 public:
  explicit ProgressLine(std::string what) : what_(std::move(what)) {}
  ~ProgressLine() {
    if (terminal_) std::fputs("\r\033[K", stderr);
  }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void operator()(const LoadProgress& progress) {
    if (!terminal_ && progress.elapsed < next_) return;
    next_ = progress.elapsed + kEvery;
    const std::string line = absl::StrFormat("%s: %d of %d requests, %d tokens, %.0f s", what_,
                                             progress.ended, progress.requests, progress.tokens,
                                             absl::ToDoubleSeconds(progress.elapsed));
    std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", line.c_str());
  }

 private:
  static constexpr absl::Duration kEvery = absl::Seconds(10);
  const std::string what_;
  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  absl::Duration next_ = kEvery;
};

class Loads {
 public:
  Loads(LoadTarget& target, const LoadOptions& options, std::string bench, std::string model)
      : target_(target),
        options_(options),
        bench_(std::move(bench)),
        model_(std::move(model)),
        seed_(options.seed) {}

  absl::Status Run() {
    std::vector<Mix> mixes;
    for (const std::string& text : options_.mixes) {
      NIBBLE_ASSIGN_OR_RETURN(mixes.emplace_back(), ParseMix(text));
    }
    if (!options_.json.empty()) {
      json_.open(options_.json, std::ios::app);
      if (!json_) return absl::NotFoundError(StrCat("json: can't write ", options_.json.string()));
    }
    NIBBLE_RETURN_IF_ERROR(RunTold("warm up", MakeRequests({.prompt = 16, .output = 8}, 1, seed_),
                                   {.concurrency = 1, .limit = absl::Minutes(5)})
                               .status());
    std::fputs(TableHeader().c_str(), stdout);
    for (const Mix& mix : mixes) {
      for (const int64_t concurrency : options_.concurrencies) {
        NIBBLE_RETURN_IF_ERROR(RunPoint({.mix = mix, .concurrency = concurrency}));
      }
      for (const double rate : options_.rates) {
        NIBBLE_RETURN_IF_ERROR(RunPoint({.mix = mix, .rate = rate}));
      }
    }
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kRounds = 4;
  static constexpr int64_t kOpenRequests = 32;

  absl::StatusOr<std::vector<RequestTrace>> RunTold(const std::string& what,
                                                    const std::vector<LoadRequest>& requests,
                                                    const LoadSchedule& schedule) {
    ProgressLine line(what);
    return RunLoad(target_, requests, schedule, std::ref(line));
  }

  absl::Status RunPoint(LoadPoint point) {
    point.bench = bench_;
    point.model = model_;
    int64_t count = options_.requests;
    if (count == 0) count = point.concurrency > 0 ? kRounds * point.concurrency : kOpenRequests;
    ++seed_;  // no point finds another's prompts in the cache
    LoadSchedule schedule = {.concurrency = point.concurrency,
                             .limit = absl::Seconds(options_.limit_seconds)};
    if (point.concurrency == 0) schedule.arrivals = PoissonArrivals(point.rate, count, seed_);
    const std::vector<LoadRequest> requests = MakeRequests(point.mix, count, seed_);
    const absl::StatusOr<double> before = target_.ProcessorSeconds();
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<RequestTrace> traces,
                            RunTold(StrCat(bench_, " ", MixName(point.mix), ", ", LoadName(point)),
                                    requests, schedule));
    const absl::StatusOr<double> after = target_.ProcessorSeconds();
    point.result = Measure(traces);
    if (before.ok() && after.ok() && point.result.output_tokens > 0) {
      point.processor_us_per_token =
          1e6 * (*after - *before) / static_cast<double>(point.result.output_tokens);
    }
    std::fputs(TableLine(point).c_str(), stdout);
    std::fflush(stdout);
    if (json_.is_open()) json_ << JsonLine(point) << std::flush;
    return absl::OkStatus();
  }

  LoadTarget& target_;
  const LoadOptions& options_;
  const std::string bench_;
  const std::string model_;
  uint64_t seed_;
  std::ofstream json_;
};

}  // namespace

void AddLoadOptions(CLI::App& app, LoadOptions& options) {
  app.add_option("--mix", options.mixes,
                 "Tokens of a request, PROMPT/OUTPUT or, where all share a prefix, "
                 "PREFIX+PROMPT/OUTPUT; several by commas")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--concurrency", options.concurrencies,
                 "Closed loops: so many requests at all times; several by commas")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  app.add_option("--rate", options.rates,
                 "Open loops: requests a second, as a Poisson process; several by commas")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  app.add_option("--requests", options.requests,
                 "Of each load (0: four for each at once, 32 of an open loop)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--limit-seconds", options.limit_seconds, "A load that takes longer fails")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Of prompts and arrivals")->capture_default_str();
  app.add_option("--json", options.json, "Append a line for each load to this file, for plot.py");
}

absl::Status CheckLoadOptions(const LoadOptions& options) {
  if (options.concurrencies.empty() && options.rates.empty()) {
    return absl::InvalidArgumentError("load: found none, expected --concurrency or --rate");
  }
  for (const std::string& mix : options.mixes) NIBBLE_RETURN_IF_ERROR(ParseMix(mix).status());
  return absl::OkStatus();
}

absl::Status RunLoads(LoadTarget& target, const LoadOptions& options, const std::string& bench,
                      const std::string& model) {
  return Loads(target, options, bench, model).Run();
}

int ExitCode(const std::string& program, const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s: %s\n", program.c_str(), status.ToString().c_str());
  return 1;
}

}  // namespace nibble
