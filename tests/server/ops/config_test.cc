#include "server/ops/config.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace nibble {
namespace {

std::variant<Config, int> Parse(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "nibbled");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  return ParseCommandLine(static_cast<int>(argv.size()), argv.data());
}

TEST(ParseCommandLine, DefaultsAreTheDocumentedOnes) {
  const Config config = std::get<Config>(Parse({"--data-root", "d"}));
  EXPECT_EQ(config.role, Config::Role::kAll);
  EXPECT_EQ(config.root.folder, "d");
  EXPECT_EQ(config.listen, "127.0.0.1:8500");
  EXPECT_EQ(config.metrics_listen, "127.0.0.1:9500");
}

TEST(ParseCommandLine, DevicesAreAListWithEachGpuOnce) {
  EXPECT_EQ(std::get<Config>(Parse({"--data-root", "d"})).devices, std::vector<Device>{Device{}});
  const Device second = {.type = Device::Type::kCuda, .index = 1};
  EXPECT_EQ(std::get<Config>(Parse({"--data-root", "d", "--devices", "cpu,cuda:1,cpu"})).devices,
            (std::vector<Device>{Device{}, second, Device{}}));
  for (const char* wrong : {"", "gpu", "cuda", "cuda:x", "cuda:0,cuda:0"}) {
    EXPECT_TRUE(std::holds_alternative<int>(Parse({"--data-root", "d", "--devices", wrong})))
        << wrong;
  }
}

TEST(ParseCommandLine, AGpusModelsAreInProcessesOfTheirOwn) {
  using Runner = Config::Runner;
  const auto parse = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"--data-root", "d"});
    return Parse(arguments);
  };
  EXPECT_EQ(std::get<Config>(parse({})).runner, Runner::kInline);
  EXPECT_EQ(std::get<Config>(parse({})).device, Device{});
  EXPECT_EQ(std::get<Config>(parse({"--runner", "process"})).runner, Runner::kProcess);
  const Config gpu = std::get<Config>(
      parse({"--device", "cuda:1", "--gpu-memory-fraction", "0.5", "--kv-format", "e4m3"}));
  EXPECT_EQ(gpu.runner, Runner::kProcess);
  EXPECT_EQ(gpu.device, (Device{.type = Device::Type::kCuda, .index = 1}));
  EXPECT_EQ(gpu.gpu_memory_fraction, 0.5);
  EXPECT_EQ(gpu.kv_format, KvFormat::kE4M3);
  const std::vector<std::vector<std::string>> wrong = {
      {"--device", "gpu"},           {"--device", "cuda:0", "--runner", "inline"},
      {"--runner", "thread"},        {"--kv-format", "e4m3"},
      {"--kv-format", "int8"},       {"--gpu-memory-fraction", "1.1"},
      {"--gpu-memory-fraction", "0"}};
  for (const auto& arguments : wrong) {
    const auto parsed = parse(arguments);
    ASSERT_TRUE(std::holds_alternative<int>(parsed)) << testing::PrintToString(arguments);
    EXPECT_NE(std::get<int>(parsed), 0);
  }
}

TEST(ParseCommandLine, TheRunnerTakesTheDaemonsOptions) {
  const Config config = std::get<Config>(Parse(
      {"runner", "--folder", "d/models/m", "--f32", "--data-root", "d", "--kv-bytes", "1048576"}));
  EXPECT_EQ(config.role, Config::Role::kRunner);
  EXPECT_EQ(config.model_folder, "d/models/m");
  EXPECT_EQ(config.compute, Compute::kF32);
  EXPECT_EQ(config.kv_bytes, 1048576);
}

TEST(ParseCommandLine, TheWorkerTakesTheDaemonsOptions) {
  const Config config =
      std::get<Config>(Parse({"worker", "--data-root", "d", "--log-level", "debug"}));
  EXPECT_EQ(config.role, Config::Role::kWorker);
  EXPECT_EQ(config.root.folder, "d");
  EXPECT_EQ(config.log_level, "debug");
}

TEST(ParseCommandLine, WhatIsWrongEndsWithANonZeroCode) {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"--data-root"},
      {"--data-root", "d", "--unknown"},
      {"--data-root", "d", "--worker-threads", "-1"},
      {"--data-root", "d", "--keepalive-seconds", "0"},
      {"--data-root", "d", "--serve-threads", "many"},
      {"--data-root", "d", "--kv-bytes", "0"},
      {"--data-root", "d", "--log-level", "loud"},
      {"--data-root", "d", "unknown-role"}};
  for (const auto& arguments : wrong) {
    const auto parsed = Parse(arguments);
    ASSERT_TRUE(std::holds_alternative<int>(parsed)) << testing::PrintToString(arguments);
    EXPECT_NE(std::get<int>(parsed), 0);
  }
}

TEST(ParseCommandLine, HelpEndsWithZeroAndShowsExamples) {
  testing::internal::CaptureStdout();
  const auto parsed = Parse({"--help"});
  const std::string text = testing::internal::GetCapturedStdout();
  EXPECT_EQ(std::get<int>(parsed), 0);
  EXPECT_NE(text.find("Examples:\n  nibbled --data-root"), std::string::npos) << text;
}

}  // namespace
}  // namespace nibble
