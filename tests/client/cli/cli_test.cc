#include "client/cli/cli.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "tests/client/cli/fake_server.h"

namespace nibble {
namespace {

using ::google::protobuf::util::MessageDifferencer;
using ::testing::HasSubstr;
using ::testing::Not;

struct Result {
  int exit = -1;
  std::string out;
  std::string err;
};

class CliTest : public ::testing::Test {
 protected:
  Result Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"--server", server_.address()});
    return RunAsIs(arguments);
  }

  static Result RunAsIs(const std::vector<std::string>& arguments) {
    std::ostringstream out;
    std::ostringstream err;
    const int exit = RunCli(arguments, {.out = out, .err = err});
    return {exit, out.str(), err.str()};
  }

  template <class Message>
  static Message Parse(const std::string& text) {
    Message message;
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
    return message;
  }

  FakeServer server_;
};

TEST_F(CliTest, SubmitFillsTheFieldsOfItsOptions) {
  const Result result = Run({"jobs",
                             "submit",
                             "--model",
                             "m",
                             "--output",
                             "o",
                             "--weights",
                             "e2m1",
                             "--activations",
                             "e4m3",
                             "--group-size",
                             "-1",
                             "--scale",
                             "m2",
                             "--m2-rounding",
                             "floor",
                             "--scale-search",
                             "diagonal",
                             "--method",
                             "gptq",
                             "--no-act-order",
                             "--damping",
                             "0.05",
                             "--lorc-rank",
                             "8",
                             "--lorc-metric",
                             "input",
                             "--lorc-iterations",
                             "3",
                             "--rotate",
                             "--rotate-seed",
                             "7",
                             "--exclude",
                             "*.0.*",
                             "--exclude",
                             "*down_proj",
                             "--compute",
                             "f32",
                             "--corpus",
                             "c.jsonl",
                             "--corpus-range",
                             "2:5",
                             "--windows",
                             "16",
                             "--window",
                             "512"});
  EXPECT_EQ(result.exit, 0) << result.err;
  const auto expected = Parse<v1::JobSpec>(R"pb(
    model: "m"
    output: "o"
    weights: FORMAT_E2M1
    activations: ACTIVATION_FORMAT_E4M3
    group_size: -1
    scale: SCALE_CONSTRAINT_M2
    m2_rounding: M2_ROUNDING_FLOOR
    scale_search: SCALE_SEARCH_DIAGONAL
    method: METHOD_GPTQ
    act_order: false
    damping: 0.05
    lorc_rank: 8
    lorc_metric: LORC_METRIC_INPUT
    lorc_iterations: 3
    rotate: true
    rotate_seed: 7
    exclude: "*.0.*"
    exclude: "*down_proj"
    compute: COMPUTE_F32
    corpus { name: "c.jsonl" first_text: 2 last_text: 5 }
    windows: 16
    window: 512)pb");
  const v1::JobSpec& spec = server_.quantization.submitted.spec();
  EXPECT_TRUE(MessageDifferencer::Equals(spec, expected)) << spec.DebugString();
}

TEST_F(CliTest, SubmitLeavesDefaultsToTheServer) {
  EXPECT_EQ(Run({"jobs", "submit", "--model", "m", "--output", "o", "--weights", "int8",
                 "--weights-asymmetric", "--activations", "int8", "--activations-symmetric"})
                .exit,
            0);
  const auto expected = Parse<v1::JobSpec>(R"pb(
    model: "m"
    output: "o"
    weights: FORMAT_INT8
    weights_asymmetric: true
    activations: ACTIVATION_FORMAT_INT8
    activations_symmetric: true)pb");
  const v1::JobSpec& spec = server_.quantization.submitted.spec();
  EXPECT_TRUE(MessageDifferencer::Equals(spec, expected)) << spec.DebugString();
}

TEST_F(CliTest, EstimateTakesSubmitsOptionsAndPrintsATable) {
  server_.quantization.estimate = Parse<v1::JobEstimate>(R"pb(
    fits: false
    reason: "host memory: found 1, expected 2"
    host_memory_bytes: 1610612736
    disk_bytes: 2048
    artifact_bytes: 1024
    seconds: 75
    linear_bits_per_weight: 4.25)pb");
  const std::vector<std::string> line = {
      "jobs", "estimate",      "--model", "m",           "--output", "o",        "--weights",
      "e2m1", "--activations", "e4m3",    "--lorc-rank", "8",        "--corpus", "c.txt"};
  const Result result = Run(line);
  EXPECT_EQ(result.exit, 0) << result.err;
  const auto expected = Parse<v1::JobSpec>(R"pb(
    model: "m"
    output: "o"
    weights: FORMAT_E2M1
    activations: ACTIVATION_FORMAT_E4M3
    lorc_rank: 8
    corpus { name: "c.txt" })pb");
  const v1::JobSpec& spec = server_.quantization.estimated.spec();
  EXPECT_TRUE(MessageDifferencer::Equals(spec, expected)) << spec.DebugString();
  EXPECT_EQ(result.out,
            "WHAT                ESTIMATE\n"
            "host memory         1.5 GiB\n"
            "device memory       0 B\n"
            "disk while it runs  2.0 KiB\n"
            "artifact            1.0 KiB\n"
            "time                1:15\n"
            "bits per weight     4.250\n"
            "fits                no: host memory: found 1, expected 2\n");

  std::vector<std::string> json = line;
  json.push_back("--json");
  EXPECT_THAT(Run(json).out, HasSubstr("\"host_memory_bytes\":\"1610612736\""));
}

TEST_F(CliTest, ARefusalIsOneSentenceAndExitStatusOne) {
  server_.quantization.submit_status = {grpc::StatusCode::INVALID_ARGUMENT,
                                        "group_size: found 0, expected 16"};
  const Result result = Run({"jobs", "submit", "--model", "m", "--output", "o", "--weights", "none",
                             "--activations", "none", "--group-size", "0"});
  EXPECT_EQ(result.exit, 1);
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(result.err, "nibble: group_size: found 0, expected 16 (INVALID_ARGUMENT)\n");
}

TEST_F(CliTest, BadWordsAreRefusedBeforeTheServerIsAsked) {
  const Result format = Run({"jobs", "submit", "--model", "m", "--output", "o", "--weights", "fp3",
                             "--activations", "none"});
  EXPECT_EQ(format.exit, 1);
  EXPECT_THAT(format.err, HasSubstr("fp3"));
  for (const std::string range : {"3", "0:4", "2:", ":2", "1:x"}) {
    const Result result =
        Run({"evaluate", "perplexity", "--model", "m", "--corpus", "c", "--corpus-range", range});
    EXPECT_EQ(result.exit, 1) << range;
    EXPECT_THAT(result.err, HasSubstr("expected A:B")) << range;
  }
  EXPECT_EQ(server_.quantization.submitted.spec().model(), "");
  EXPECT_EQ(server_.evaluation.asked.model(), "");
}

TEST_F(CliTest, AnUnknownCommandIsNamedWithThoseThereAre) {
  const Result unknown = RunAsIs({"bogus"});
  EXPECT_EQ(unknown.exit, 1);
  EXPECT_EQ(unknown.out, "");
  EXPECT_EQ(unknown.err,
            "nibble: the command after `nibble`: found \"bogus\", expected one of jobs, models, "
            "corpora, generate, evaluate, import, report, sweep; see `nibble --help` "
            "(INVALID_ARGUMENT)\n");
  const Result nested = RunAsIs({"jobs", "bogus", "x"});
  EXPECT_EQ(nested.exit, 1);
  EXPECT_THAT(nested.err,
              HasSubstr("after `nibble jobs`: found \"bogus\", expected one of submit"));
  EXPECT_THAT(nested.err, HasSubstr("see `nibble jobs --help`"));
  const Result none = RunAsIs({"jobs"});
  EXPECT_EQ(none.exit, 1);
  EXPECT_THAT(none.err, HasSubstr("after `nibble jobs`: found none, expected one of submit"));
}

TEST_F(CliTest, WatchResumesAfterTheLastEventSeen) {
  server_.quantization.watches = {
      {{Parse<v1::JobEvent>("sequence: 1 state: JOB_STATE_QUEUED"),
        Parse<v1::JobEvent>("sequence: 2 state: JOB_STATE_RUNNING")},
       {grpc::StatusCode::UNAVAILABLE, "going away"}},
      {{Parse<v1::JobEvent>("sequence: 3 state: JOB_STATE_SUCCEEDED summary {}")}, {}}};
  const Result result = Run({"jobs", "watch", "job-1", "--json"});
  EXPECT_EQ(result.exit, 0) << result.err;
  ASSERT_EQ(server_.quantization.watched.size(), 2);
  EXPECT_EQ(server_.quantization.watched[0].after_sequence(), 0);
  EXPECT_EQ(server_.quantization.watched[1].after_sequence(), 2);
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 3);
  EXPECT_THAT(result.out, HasSubstr("\"sequence\":\"3\""));
}

TEST_F(CliTest, WaitFailsWithTheJobsReason) {
  server_.quantization.watches = {
      {{Parse<v1::JobEvent>("sequence: 1 state: JOB_STATE_FAILED failure { message: 'disk' }")},
       {}}};
  const Result failed = Run({"jobs", "submit", "--model", "m", "--output", "o", "--weights", "none",
                             "--activations", "none", "--wait"});
  EXPECT_EQ(failed.exit, 1);
  EXPECT_EQ(failed.err, "nibble: job job-1 failed: disk\n");

  server_.quantization.watches = {
      {{Parse<v1::JobEvent>("sequence: 1 state: JOB_STATE_CANCELLED")}, {}}};
  EXPECT_EQ(Run({"jobs", "watch", "job-1"}).exit, 1);
}

TEST_F(CliTest, ListReadsEveryPage) {
  server_.quantization.pages[""] =
      Parse<v1::ListJobsResponse>("jobs { id: 'second' } next_page_token: 'more'");
  server_.quantization.pages["more"] = Parse<v1::ListJobsResponse>("jobs { id: 'first' }");
  const Result table = Run({"jobs", "list"});
  EXPECT_THAT(table.out, HasSubstr("second"));
  EXPECT_THAT(table.out, HasSubstr("first"));
  const Result json = Run({"jobs", "list", "--json"});
  EXPECT_EQ(std::count(json.out.begin(), json.out.end(), '\n'), 2);
  EXPECT_EQ(json.out, Run({"--json", "jobs", "list"}).out);
}

TEST_F(CliTest, GenerateStreamsTextAndKeepsFiguresOffStdout) {
  server_.inference.answer.messages = {
      Parse<v1::GenerateResponse>("text: 'half '"), Parse<v1::GenerateResponse>("text: 'a byte'"),
      Parse<v1::GenerateResponse>("finish_reason: FINISH_REASON_STOP "
                                  "usage { prompt_tokens: 5 completion_tokens: 4 } "
                                  "timing { total_seconds: 2 time_to_first_token_seconds: 0.5 }")};
  const Result result = Run({"generate", "--model", "m", "--chat", "--prompt", "what?",
                             "--max-tokens", "9", "--temperature", "0", "--seed", "3"});
  EXPECT_EQ(result.exit, 0) << result.err;
  EXPECT_EQ(result.out, "half a byte\n");
  EXPECT_EQ(result.err,
            "5 prompt tokens, 4 generated, first after 0.50 s, then 2.0 tokens/s, finish STOP\n");
  const auto expected = Parse<v1::GenerateRequest>(R"pb(
    model: "m"
    chat { messages { role: "user" content: "what?" } }
    max_tokens: 9
    sampling { temperature: 0 seed: 3 })pb");
  EXPECT_TRUE(MessageDifferencer::Equals(server_.inference.asked, expected))
      << server_.inference.asked.DebugString();
}

TEST_F(CliTest, EvaluationsLastJsonLineHoldsThePerplexity) {
  server_.evaluation.answer.messages = {
      Parse<v1::EvaluatePerplexityResponse>("windows_total: 2"),
      Parse<v1::EvaluatePerplexityResponse>("windows_done: 2 perplexity: 12.5 done: true")};
  const Result result = Run({"evaluate", "perplexity", "--model", "m", "--corpus", "c.jsonl",
                             "--corpus-range", "1:3", "--window", "512", "--json"});
  EXPECT_EQ(result.exit, 0) << result.err;
  const std::string last = result.out.substr(result.out.find('\n') + 1);
  EXPECT_THAT(last, HasSubstr("\"perplexity\":12.5"));
  EXPECT_THAT(result.out.substr(0, result.out.find('\n')), Not(HasSubstr("\"perplexity\"")));
  EXPECT_EQ(server_.evaluation.asked.corpus().last_text(), 3);
  EXPECT_EQ(server_.evaluation.asked.window(), 512);
}

TEST_F(CliTest, AStreamThatEndsWithoutAResultIsAFailure) {
  server_.evaluation.answer.messages = {Parse<v1::EvaluatePerplexityResponse>("windows_total: 2")};
  const Result result = Run({"evaluate", "perplexity", "--model", "m", "--corpus", "c.txt"});
  EXPECT_EQ(result.exit, 1);
  EXPECT_THAT(result.err, HasSubstr("without a result"));
}

TEST_F(CliTest, AProfileIsATableOfLayersAndSites) {
  server_.evaluation.profile.messages = {
      Parse<v1::ProfileActivationsResponse>("layers_total: 1"),
      Parse<v1::ProfileActivationsResponse>(R"pb(
        layers_done: 1
        layers_total: 1
        profile {
          site: ACTIVATION_SITE_MLP_OUTPUT
          min: -2
          max: 8
          kurtosis: 120.25
          token_range_quantiles { probability: 0.5 value: 4.5 }
          outlier_channels { channel: 7 }
          placements {
            format { format: ACTIVATION_FORMAT_INT8 symmetric: true }
            relative_error: 0.5
          }
        })pb"),
      Parse<v1::ProfileActivationsResponse>("layers_done: 1 layers_total: 1 done: true")};
  const std::vector<std::string> command = {"evaluate",        "profile",
                                            "--model",         "m",
                                            "--corpus",        "c.txt",
                                            "--windows",       "2",
                                            "--window",        "64",
                                            "--layer",         "0",
                                            "--site",          "mlp_output",
                                            "--bins",          "8",
                                            "--quantile",      "0.5",
                                            "--outlier-ratio", "5",
                                            "--outliers",      "1",
                                            "--token",         "9",
                                            "--format",        "int8-symmetric",
                                            "--compute",       "f32"};
  const Result table = Run(command);
  EXPECT_EQ(table.exit, 0) << table.err;
  EXPECT_THAT(table.out, HasSubstr("INT8-SYMMETRIC ERROR"));
  for (const char* cell : {"MLP_OUTPUT", "-2.000", "8.000", "120.2", "4.500", "0.50000"}) {
    EXPECT_THAT(table.out, HasSubstr(cell));
  }
  const auto expected = Parse<v1::ProfileActivationsRequest>(R"pb(
    model: "m"
    corpus { name: "c.txt" }
    windows: 2
    window: 64
    compute: COMPUTE_F32
    layers: 0
    sites: ACTIVATION_SITE_MLP_OUTPUT
    histogram_bins: 8
    quantiles: 0.5
    outlier_ratio: 5
    outlier_channels: 1
    placement_token: 9
    placement_formats { format: ACTIVATION_FORMAT_INT8 symmetric: true })pb");
  EXPECT_TRUE(MessageDifferencer::Equals(server_.evaluation.profiled, expected))
      << server_.evaluation.profiled.DebugString();

  std::vector<std::string> json = command;
  json.push_back("--json");
  const Result lines = Run(json);
  EXPECT_EQ(std::count(lines.out.begin(), lines.out.end(), '\n'), 3);
  EXPECT_THAT(lines.out, HasSubstr("\"kurtosis\":120.25"));

  server_.evaluation.profile.messages.pop_back();
  EXPECT_EQ(Run(command).exit, 1);
}

TEST_F(CliTest, AServerThatIsNotThereIsNamed) {
  const Result result = RunAsIs({"jobs", "list", "--server", "127.0.0.1:1"});
  EXPECT_EQ(result.exit, 1);
  EXPECT_THAT(result.err, HasSubstr("127.0.0.1:1"));
}

TEST_F(CliTest, EveryCommandHasHelpWithExamples) {
  const std::vector<std::vector<std::string>> commands = {{},
                                                          {"jobs"},
                                                          {"jobs", "submit"},
                                                          {"jobs", "list"},
                                                          {"jobs", "get"},
                                                          {"jobs", "watch"},
                                                          {"jobs", "cancel"},
                                                          {"jobs", "delete"},
                                                          {"models"},
                                                          {"models", "list"},
                                                          {"models", "get"},
                                                          {"models", "load"},
                                                          {"models", "unload"},
                                                          {"models", "delete"},
                                                          {"generate"},
                                                          {"evaluate"},
                                                          {"evaluate", "perplexity"},
                                                          {"evaluate", "profile"},
                                                          {"import"},
                                                          {"import", "gguf"},
                                                          {"import", "hf"}};
  for (std::vector<std::string> command : commands) {
    command.push_back("--help");
    const Result result = RunAsIs(command);
    EXPECT_EQ(result.exit, 0);
    EXPECT_THAT(result.out, HasSubstr("examples:\n  nibble ")) << ::testing::PrintToString(command);
  }
}

TEST_F(CliTest, ImportRefusesNamesThatArePaths) {
  for (const std::string name : {"../up", "/root", ".hidden", "-x/y", ""}) {
    const Result result = RunAsIs({"import", "hf", "folder", "--data-root", "root", "--", name});
    EXPECT_EQ(result.exit, 1);
    EXPECT_THAT(result.err, HasSubstr("NAME: found")) << name;
  }
}

}  // namespace
}  // namespace nibble
