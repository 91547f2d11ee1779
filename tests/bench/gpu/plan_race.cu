// Every plan of the W4A8 linear that has a kernel, raced for a shape and a number of tokens. The
// planners' rules come from such races.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "quant/kernels/cuda/w4a8/decode.h"
#include "quant/kernels/cuda/w4a8/wide.h"
#include "tests/bench/gpu/cold_linear.h"

namespace nibble::w4a8 {
namespace {

struct Entry {
  double us;
  std::string plan;
  bool chosen;  // by the planner
};

void Report(const std::string& title, std::vector<Entry> entries) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.us < b.us; });
  std::printf("%s\n", title.c_str());
  for (const Entry& entry : entries) {
    std::printf("%c %8.2f us  %s\n", entry.chosen ? '*' : ' ', entry.us, entry.plan.c_str());
  }
  std::fflush(stdout);
}

template <class Run, class Plan>
void Race(const ColdLinear& linear, const Plan& plan, bool chosen, Run&& run,
          std::vector<Entry>& entries) {
  std::fprintf(stderr, "racing %s\n", plan.ToString().c_str());
  const double us = linear.Microseconds([&](const PreparedLinear& weights, cudaStream_t stream) {
    return run(plan, weights, stream);
  });
  entries.push_back({us, plan.ToString(), chosen});
}

// Every division of row tiles and of K among warpgroups and clusters that the device can run, for
// one and two blocks a multiprocessor.
void RaceDecode(const std::string& text, const ColdLinear& linear, int64_t tokens) {
  const PreparedLinear& weights = linear.first();
  const LinearShape shape = ShapeOf(weights, tokens);
  const DecodePlan own = PlanDecode(shape);
  const CallBuffers buffers(weights, tokens, WorkspaceBytes(weights, tokens));
  const auto run = [&](const DecodePlan& plan, const PreparedLinear& copy, cudaStream_t stream) {
    return LaunchDecode(plan, copy, buffers.call(), stream);
  };
  std::vector<Entry> entries;
  for (const int tiles : {1, 2, 3, 4}) {
    for (const int k_groups : {1, 2, 4}) {
      for (const int splits : {1, 2, 4, 8}) {
        for (const int blocks : {1, 2}) {
          DecodePlan plan;
          plan.token_tile = own.token_tile;
          plan.tiles = tiles;
          plan.k_groups = k_groups;
          plan.splits = splits;
          plan.lorc_pieces = own.lorc_pieces;  // for which the workspace has room
          if (LorcTiles(shape.ranks) * plan.lorc_pieces % splits != 0) continue;
          if (plan.warpgroups() > kMaxWarpgroups || plan.parts() > weights.slice_count()) continue;
          CompletePlan(shape, {}, blocks, 64, plan);
          const absl::StatusOr<int> resident = ResidentBlocks(plan, weights);
          if (!resident.ok() || *resident == 0) continue;
          Race(linear, plan, plan.ToString() == own.ToString(), run, entries);
        }
      }
    }
  }
  Report(text + " M " + std::to_string(tokens), std::move(entries));
}

void RaceWide(const std::string& text, const ColdLinear& linear, int64_t tokens, bool promoted) {
  const PreparedLinear& weights = linear.first();
  const LinearShape shape = ShapeOf(weights, tokens);
  const WidePlan own = PlanWide(shape, promoted);
  const CallBuffers buffers(weights, tokens,
                            WideWorkspaceMemory(shape, WideSource::kExpanded).bytes);
  const auto run = [&](const WidePlan& plan, const PreparedLinear& copy, cudaStream_t stream) {
    return LaunchWide(plan, copy, buffers.call(), stream);
  };
  std::vector<Entry> entries;
  for (const int cluster : {1, 2, 4}) {
    std::vector<WideChoice> choices = {{-1, 1, cluster}, {-1, 2, cluster}};
    if (cluster < 4) choices.push_back({1, 2, cluster});
    for (const WideChoice& choice : choices) {
      const WidePlan plan = PlanWide(shape, promoted, {}, choice);
      Race(linear, plan, plan.ToString() == own.ToString(), run, entries);
    }
  }
  Report(text + " M " + std::to_string(tokens) + (promoted ? " promoted" : " fast"),
         std::move(entries));
}

void RaceShape(const std::string& text, const std::vector<int64_t>& token_counts, int rank) {
  const WeightSpec spec = {.group_size = 128};
  const ColdLinear linear(spec, ParseShape(text), rank);
  for (const int64_t tokens : token_counts) {
    if (tokens <= kDecodeTokens) {
      RaceDecode(text, linear, tokens);
      continue;
    }
    RaceWide(text, linear, tokens, true);
    if (tokens > 128) RaceWide(text, linear, tokens, false);
  }
}

}  // namespace
}  // namespace nibble::w4a8

int main(int argc, char** argv) {
  CLI::App app(
      "Races every plan of the W4A8 linear (E2M1, M2, groups of 128) on the first GPU, weights "
      "cold; * marks the planner's choice.\n"
      "example: build/cuda/bin/plan_race --shapes 8192x8192 --m 1,64,256",
      "plan_race");
  std::vector<std::string> shapes = {"8192x8192"};
  std::vector<int64_t> tokens = {1, 16, 32, 64, 128, 256};
  int rank = 0;
  app.add_option("--shapes", shapes, "ROWSxCOLS,...")->delimiter(',')->capture_default_str();
  app.add_option("--m", tokens, "numbers of tokens")
      ->delimiter(',')
      ->check(CLI::Range(1, 16384))
      ->capture_default_str();
  app.add_option("--rank", rank, "rank of LoRC")->check(CLI::Range(0, 128))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  for (const std::string& shape : shapes) nibble::w4a8::RaceShape(shape, tokens, rank);
  return 0;
}
