#include "server/registry/model_folder.h"

#include <gmock/gmock.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <fstream>
#include <sstream>

#include "tests/fixtures/tiny_llama.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

TEST(ModelFolder, CountsParametersAndBytesOfACheckpoint) {
  const TempFolder folder;
  const DataRoot root{folder.path()};
  ASSERT_TRUE(CreateFolders(root).ok());
  ASSERT_TRUE(WriteTinyLlama({}, root.models() / "tiny").ok());
  const auto found = ReadModelFolder(root.models() / "tiny");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->name, "tiny");
  EXPECT_FALSE(found->artifact);
  EXPECT_FALSE(found->has_chat_template);
  // 256 x 64 embeddings, 4 layers of (64 + 32 + 32 + 64) x 64 attention, 3 x 64 x 128 MLP and two
  // norms, one norm.
  const int64_t parameters = 256 * 64 + 4 * (192 * 64 + 3 * 64 * 128 + 2 * 64) + 64;
  EXPECT_EQ(found->parameters, parameters);
  EXPECT_EQ(found->model_bits_per_weight, 32);
  EXPECT_GT(found->bytes, 4 * parameters);
}

TEST(ModelFolder, AListLeavesOutWhatIsNoModelAndNamesIt) {
  const TempFolder folder;
  const DataRoot root{folder.path()};
  ASSERT_TRUE(CreateFolders(root).ok());
  ASSERT_TRUE(WriteTinyLlama({}, root.models() / "b").ok());
  ASSERT_TRUE(WriteTinyLlama({}, root.models() / "a").ok());
  std::filesystem::create_directories(root.models() / "broken");
  std::ofstream(root.models() / "broken" / "config.json") << "{";
  // A job's folder before its commit.
  ASSERT_TRUE(WriteTinyLlama({}, root.artifacts() / ".staging-c").ok());
  std::map<std::string, std::string> unreadable;
  std::vector<std::string> names;
  for (const ModelFolder& model : ListModelFolders(root, &unreadable)) names.push_back(model.name);
  EXPECT_THAT(names, testing::ElementsAre("a", "b"));
  EXPECT_THAT(unreadable,
              testing::ElementsAre(testing::Pair("broken", testing::HasSubstr("config.json"))));
}

TEST(UnreadableWarnings, TellsOfEachOnceAndAgainWhenTheReasonChanges) {
  std::ostringstream log;
  auto logger = std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log));
  logger->set_pattern("%l %v");
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(logger);
  UnreadableWarnings warnings;
  const auto told = [&](const std::map<std::string, std::string>& unreadable) {
    log.str("");
    warnings.Tell(unreadable);
    return log.str();
  };
  EXPECT_EQ(told({{"a", "no config"}}), "warning model a is not listed: no config\n");
  EXPECT_EQ(told({{"a", "no config"}}), "");
  EXPECT_EQ(told({{"a", "no weights"}}), "warning model a is not listed: no weights\n");
  EXPECT_EQ(told({}), "");
  EXPECT_EQ(told({{"a", "no weights"}}), "warning model a is not listed: no weights\n");
  spdlog::set_default_logger(before);
}

}  // namespace
}  // namespace nibble
