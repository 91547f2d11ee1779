// Artifacts that someone has changed since: refused when they are loaded, by file or tensor.
#include <gmock/gmock.h>

#include <fstream>
#include <functional>
#include <random>

#include "quant/base/sha256.h"
#include "quant/model/checkpoint/artifact.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/decoder/decoder.h"
#include "quant/pipeline/pipeline.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr char kWeights[] = "model-00001-of-00002.safetensors";  // the layer's
constexpr char kUpProj[] = "model.layers.0.mlp.up_proj";

class HostileArtifactTest : public testing::Test {
 protected:
  HostileArtifactTest() {
    EXPECT_TRUE(WriteTinyLlama({.hidden = 32, .layers = 1, .intermediate = 64}, checkpoint_).ok());
    QuantizeSpec spec;
    spec.weights = WeightSpec{.format = Format::kE2M1, .group_size = 16};
    spec.activations = ActivationSpec{.format = Format::kE4M3};
    spec.method = Method::kRtn;
    const auto made = QuantizeModel(spec, checkpoint_, artifact_,
                                    [](const Progress&) { return absl::OkStatus(); });
    EXPECT_TRUE(made.ok()) << made.status();
  }
  absl::Status Load() { return Decoder::Load(artifact_, Compute::kF32).status(); }

  std::vector<NamedTensor> Tensors() {
    std::vector<NamedTensor> tensors;
    const auto source = TensorSource::Open(artifact_).value();
    for (const std::string& name : source->Names()) {
      const TensorView view = source->Find(name).value();
      tensors.push_back({name, view.dtype, view.shape, {view.bytes.begin(), view.bytes.end()}});
    }
    return tensors;
  }
  // As the one file that is read before any shards, with a sum that matches.
  void Write(const std::vector<NamedTensor>& tensors) {
    ASSERT_TRUE(WriteSafetensors(artifact_ / "model.safetensors", tensors).ok());
    ForgeSum("model.safetensors");
  }
  void ForgeSum(const std::string& file) {
    Json manifest = ReadJsonFile(artifact_ / "nibble.json").value();
    manifest["files"][file] = Sha256File(artifact_ / file).value();
    std::ofstream(artifact_ / "nibble.json") << manifest;
  }
  void ForgeSpec(const std::function<void(Json&)>& change) {
    Json manifest = ReadJsonFile(artifact_ / "nibble.json").value();
    change(manifest["spec"]);
    std::ofstream(artifact_ / "nibble.json") << manifest;
  }
  static NamedTensor& Find(std::vector<NamedTensor>& tensors, const std::string& name) {
    return *std::ranges::find(tensors, name, &NamedTensor::name);
  }

  TempFolder folder_;
  std::filesystem::path checkpoint_ = folder_.path() / "tiny";
  std::filesystem::path artifact_ = folder_.path() / "artifacts" / "small";
};

TEST_F(HostileArtifactTest, AFlippedBitAnywhereIsFound) {
  ASSERT_TRUE(Load().ok());
  constexpr uint64_t kSeed = 20261124;
  std::mt19937_64 random(kSeed);
  for (const char* name : {kWeights, "config.json", "tokenizer.json", "report.json"}) {
    for (int i = 0; i < 20; ++i) {
      const auto size = std::filesystem::file_size(artifact_ / name);
      const auto at = static_cast<std::streamoff>(random() % size);
      const char mask = static_cast<char>(1 << random() % 8);
      const auto flip = [&] {
        std::fstream file(artifact_ / name, std::ios::in | std::ios::out | std::ios::binary);
        file.seekg(at);
        const char byte = static_cast<char>(file.get());
        file.seekp(at);
        file.put(static_cast<char>(byte ^ mask));
      };
      flip();
      const absl::Status status = Load();
      EXPECT_FALSE(status.ok()) << name << " at " << at << " seed " << kSeed;
      EXPECT_THAT(status.message(), HasSubstr(name)) << "at " << at << " seed " << kSeed;
      flip();
    }
  }
  EXPECT_TRUE(Load().ok());
}

TEST_F(HostileArtifactTest, AMissingFileIsNamed) {
  std::filesystem::remove(artifact_ / kWeights);
  EXPECT_THAT(Load().message(), HasSubstr(kWeights));
}

TEST_F(HostileArtifactTest, ForgedTensorsAreRefusedByName) {
  const std::vector<NamedTensor> good = Tensors();
  const auto refuse = [&](const std::function<void(std::vector<NamedTensor>&)>& change,
                          const std::string& words) {
    std::vector<NamedTensor> tensors = good;
    change(tensors);
    Write(tensors);
    const absl::Status status = Load();
    EXPECT_FALSE(status.ok()) << words;
    EXPECT_THAT(status.message(), HasSubstr(words));
  };
  const std::string up = kUpProj;
  refuse([&](auto& t) { Find(t, up + ".weight_k").bytes[0] = 0x0c; }, up);           // k = 12
  refuse([&](auto& t) { Find(t, up + ".weight_row_scale").bytes[3] = 0x7f; }, up);   // NaN or huge
  refuse([&](auto& t) { Find(t, up + ".weight_row_scale").bytes[3] |= 0x80; }, up);  // negative
  refuse([&](auto& t) { Find(t, up + ".weight_codes").shape = {32, 32}; }, up + ".weight_codes");
  refuse([&](auto& t) { Find(t, up + ".weight_codes").dtype = DType::kI8; }, up + ".weight_codes");
  refuse([&](auto& t) { std::erase_if(t, [&](auto& x) { return x.name == up + ".weight_k"; }); },
         up + ".weight_k");
  refuse([&](auto& t) { Find(t, "model.norm.weight").shape = {16, 2}; }, "model.norm.weight");
  Write(good);
  EXPECT_TRUE(Load().ok());
}

TEST_F(HostileArtifactTest, WeightsBesideTheArtifactsOwnAreFound) {
  // It is read in the shards' place, and no sum tells that it should not be.
  ASSERT_TRUE(WriteSafetensors(artifact_ / "model.safetensors", Tensors()).ok());
  const absl::Status status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr("model.safetensors"));
}

TEST_F(HostileArtifactTest, NoMemoryIsTakenForAShapeThatTheFilesDoNotHave) {
  const auto tensors = TensorSource::Open(artifact_).value();
  const WeightSpec spec{.format = Format::kE2M1, .group_size = 16};
  const absl::Status status =
      ReadQuantizedMatrix(*tensors, kUpProj, spec, int64_t{1} << 40, 1 << 18).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr(std::string(kUpProj) + ".weight_codes"));
}

TEST_F(HostileArtifactTest, AWeightThatIsNoNumberIsNamed) {
  std::vector<NamedTensor> tensors = Tensors();
  std::vector<uint8_t>& norm = Find(tensors, "model.norm.weight").bytes;  // bf16
  norm[2] = 0xc0;
  norm[3] = 0x7f;
  Write(tensors);
  const absl::Status status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("model.norm.weight"));
}

TEST_F(HostileArtifactTest, AForgedSpecIsRefused) {
  const auto refuse = [&](const std::function<void(Json&)>& change) {
    const Json good = ReadJsonFile(artifact_ / "nibble.json").value();
    ForgeSpec(change);
    EXPECT_FALSE(Load().ok()) << ReadJsonFile(artifact_ / "nibble.json").value()["spec"].dump();
    std::ofstream(artifact_ / "nibble.json") << good;
  };
  refuse([](Json& spec) { spec["weights"]["group_size"] = 0; });
  refuse([](Json& spec) { spec["weights"]["group_size"] = 32; });
  refuse([](Json& spec) { spec["weights"]["format"] = "e9m9"; });
  refuse([](Json& spec) { spec["weights"]["format"] = "int8"; });
  refuse([](Json& spec) { spec["weights"]["scale"] = "m1"; });
  refuse([](Json& spec) { spec["weights"]["asymmetric"] = true; });
  refuse([](Json& spec) { spec["lorc_rank"] = 4; });
  refuse([](Json& spec) { spec["lorc_rank"] = -1; });
  refuse([](Json& spec) { spec["excluded"] = {kUpProj}; });
  refuse([](Json& spec) { spec["excluded"] = {1}; });
  refuse([](Json& spec) { spec.erase("weights"); });
  EXPECT_TRUE(Load().ok());
}

}  // namespace
}  // namespace nibble
