#include "quant/model/checkpoint/safetensors.h"

#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>

#include "quant/base/strings.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

void WriteFile(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), bytes.size());
}

// A file by hand: the length of `header`, `header`, `data_bytes` bytes that count up.
std::string FileOf(std::string_view header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
  file += header;
  for (size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

class SafetensorsTest : public testing::Test {
 protected:
  absl::Status OpenBytes(std::string_view bytes) {
    WriteFile(path("x.safetensors"), bytes);
    return SafetensorsFile::Open(path("x.safetensors")).status();
  }
  void ExpectRefused(std::string_view header, size_t data_bytes, const std::string& message) {
    const absl::Status status = OpenBytes(FileOf(header, data_bytes));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << header;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message)) << header;
  }
  std::filesystem::path path(const std::string& name) const { return folder_.path() / name; }

  TempFolder folder_;
};

TEST_F(SafetensorsTest, ReadsAFileWrittenByHand) {
  WriteFile(path("x.safetensors"),
            FileOf(R"({"__metadata__":{"format":"pt"},)"
                   R"("b":{"dtype":"U8","shape":[2,1],"data_offsets":[4,6]},)"
                   R"("empty":{"dtype":"F32","shape":[0,3],"data_offsets":[6,6]},)"
                   R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   )",
                   6));
  const auto file = SafetensorsFile::Open(path("x.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 3u);
  const TensorView& b = (*file)->tensors().at("b");
  EXPECT_EQ(b.dtype, DType::kU8);
  EXPECT_THAT(b.shape, ElementsAre(2, 1));
  EXPECT_THAT(b.bytes, ElementsAre(4, 5));
  EXPECT_EQ((*file)->tensors().at("a").elements(), 1);
  EXPECT_EQ((*file)->tensors().at("empty").elements(), 0);
}

TEST_F(SafetensorsTest, RefusesWrongLayouts) {
  const std::string a = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)";
  ExpectRefused(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})", 7, "overlap");
  ExpectRefused(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})", 9, "gap");
  ExpectRefused(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", 7, "expected 8");
  ExpectRefused(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", 9, "expected 8");
  ExpectRefused(a + R"("a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", 8, "twice");
}

TEST_F(SafetensorsTest, RefusesWrongEntries) {
  const auto entry = [](std::string_view fields) { return StrCat("{\"a\":", fields, "}"); };
  ExpectRefused(entry(R"({"dtype":"F8","shape":[4],"data_offsets":[0,4]})"), 4, "found \"F8\"");
  ExpectRefused(entry(R"({"dtype":7,"shape":[4],"data_offsets":[0,4]})"), 4, "dtype: found 7");
  ExpectRefused(entry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,4]})"), 4, "16 bytes apart");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[-4],"data_offsets":[0,4]})"), 4, "found -4");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[4.0],"data_offsets":[0,4]})"), 4, "found 4.0");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[4],"data_offsets":[4,0]})"), 4, "[4, 0]");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[4],"data_offsets":[0,2,4]})"), 4, "[0, 2, 4]");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[4]})"), 4, "data_offsets: found nothing");
  ExpectRefused(entry("[]"), 0, "found a list, expected an object");
  ExpectRefused(entry(R"({"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]})"), 1,
                "found 9 numbers");
}

TEST_F(SafetensorsTest, RefusesSizesThatOverflow) {
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
                "63 bits");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,4]}})", 4,
                "18446744073709551615");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551612,0]}})", 4,
                "18446744073709551612");
}

TEST_F(SafetensorsTest, RefusesWrongHeaders) {
  ExpectRefused("[]", 0, "'{'");
  ExpectRefused(" {}", 0, "'{'");
  ExpectRefused("{\"a\":", 0, "not valid JSON");
  ExpectRefused("{\"\xff\":1}", 0, "not valid JSON");
  ExpectRefused("{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}", 0,
                "nested deeper");
  EXPECT_THAT(std::string(OpenBytes("short").message()), HasSubstr("found 5 bytes"));
  // The length field says more than there is, or more than anybody may ask for.
  std::string file = FileOf("{}", 0);
  file[0] = 3;
  EXPECT_THAT(std::string(OpenBytes(file).message()), HasSubstr("expected at most 2"));
  std::memset(file.data(), 0xff, 8);
  EXPECT_THAT(std::string(OpenBytes(file).message()), HasSubstr("18446744073709551615"));
}

TEST_F(SafetensorsTest, RefusesHeaderBombsBeforeTheyGrow) {
  std::string bomb = "{\"a\":[0";
  for (int i = 0; i < 3'000'000; ++i) bomb += ",0";
  ExpectRefused(bomb + "]}", 0, "more than");
}

// Every one-byte change of a small file is read or refused, never a crash or a view outside.
TEST_F(SafetensorsTest, SurvivesFlippedBytes) {
  const std::string good = FileOf(R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},)"
                                  R"("b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]}})",
                                  7);
  int opened = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    for (const char change : {'\x01', '\x10', '\x80'}) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ change);
      WriteFile(path("x.safetensors"), bad);
      const auto file = SafetensorsFile::Open(path("x.safetensors"));
      if (!file.ok()) continue;
      ++opened;
      size_t bytes = 0;
      for (const auto& [name, view] : (*file)->tensors()) bytes += view.bytes.size();
      EXPECT_EQ(bytes, 7u);
    }
  }
  EXPECT_GT(opened, 0);  // changes of names and of tensor bytes
}

TEST_F(SafetensorsTest, MissingFileAndFolderAreNamed) {
  EXPECT_EQ(SafetensorsFile::Open(path("none")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(SafetensorsFile::Open(folder_.path()).ok());
  const absl::Status status = TensorSource::Open(folder_.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors.index.json"));
}

NamedTensor BytesTensor(std::string name, std::vector<uint8_t> bytes) {
  const auto size = static_cast<int64_t>(bytes.size());
  return {.name = std::move(name), .dtype = DType::kU8, .shape = {size}, .bytes = std::move(bytes)};
}

TEST_F(SafetensorsTest, WhatIsWrittenIsRead) {
  const std::vector<NamedTensor> tensors = {
      BytesTensor("odd \"name\"", {1, 2, 3}),
      {.name = "h", .dtype = DType::kBF16, .shape = {1, 2}, .bytes = {0x80, 0x3f, 0, 0xc0}},
      {.name = "f", .dtype = DType::kF32, .shape = {0}, .bytes = {}}};
  ASSERT_TRUE(WriteSafetensors(path("model.safetensors"), tensors).ok());
  const auto source = TensorSource::Open(folder_.path());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_THAT((*source)->Names(), ElementsAre("f", "h", "odd \"name\""));
  EXPECT_THAT((*source)->Find("odd \"name\"")->bytes, ElementsAre(1, 2, 3));
  const auto h = (*source)->Find("h", {1, 2});
  ASSERT_TRUE(h.ok()) << h.status();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(h->bytes.data()) % 2, 0u);
  std::vector<float> values(2);
  ASSERT_TRUE(WidenToFloat("h", *h, absl::MakeSpan(values)).ok());
  EXPECT_THAT(values, ElementsAre(1.0f, -2.0f));
  (*source)->Release(*h);
  EXPECT_THAT(h->bytes, ElementsAre(0x80, 0x3f, 0, 0xc0));
  EXPECT_TRUE((*source)->Contains("f"));
  EXPECT_FALSE((*source)->Contains("g"));
}

TEST_F(SafetensorsTest, FindNamesWhatIsMissingOrMisshapen) {
  ASSERT_TRUE(WriteSafetensors(path("model.safetensors"), {BytesTensor("a", {1, 2})}).ok());
  const auto source = TensorSource::Open(folder_.path());
  ASSERT_TRUE(source.ok());
  EXPECT_EQ((*source)->Find("lm_head.weight").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string((*source)->Find("lm_head.weight").status().message()),
              HasSubstr("\"lm_head.weight\""));
  EXPECT_THAT(std::string((*source)->Find("a", {1, 2}).status().message()),
              HasSubstr("found the shape [2], expected [1, 2]"));
}

TEST_F(SafetensorsTest, WriterRefusesWhatItCouldNotReadBack) {
  const auto message = [&](absl::Span<const NamedTensor> tensors) {
    return std::string(WriteSafetensors(path("x"), tensors).message());
  };
  EXPECT_THAT(message({BytesTensor("a", {1}), BytesTensor("a", {2})}), HasSubstr("twice"));
  EXPECT_THAT(message({BytesTensor("__metadata__", {1})}), HasSubstr("reserved"));
  EXPECT_THAT(message({BytesTensor("\xff", {1})}), HasSubstr("UTF-8"));
  NamedTensor wrong = BytesTensor("a", {1, 2});
  wrong.shape = {3};
  EXPECT_THAT(message({wrong}), HasSubstr("found 2 bytes, expected those of U8 [3]"));
}

TEST_F(SafetensorsTest, FullDiskIsResourceExhausted) {
  EXPECT_EQ(WriteSafetensors("/dev/full", {BytesTensor("a", {1})}).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(WriteSafetensors(path("no/such/folder"), {}).code(), absl::StatusCode::kDataLoss);
}

class ShardsTest : public SafetensorsTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteSafetensors(path("one.safetensors"), {BytesTensor("a", {1})}).ok());
    ASSERT_TRUE(
        WriteSafetensors(path("two.safetensors"), {BytesTensor("b", {2}), BytesTensor("c", {3})})
            .ok());
  }
  absl::StatusOr<std::unique_ptr<TensorSource>> OpenIndex(std::string_view weight_map) {
    WriteFile(path("model.safetensors.index.json"),
              StrCat(R"({"metadata":{"total_size":3},"weight_map":)", weight_map, "}"));
    return TensorSource::Open(folder_.path());
  }
  void ExpectIndexRefused(std::string_view weight_map, const std::string& message) {
    EXPECT_THAT(std::string(OpenIndex(weight_map).status().message()), HasSubstr(message))
        << weight_map;
  }
};

TEST_F(ShardsTest, ReadsAllShards) {
  const auto source =
      OpenIndex(R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_THAT((*source)->Names(), ElementsAre("a", "b", "c"));
  EXPECT_THAT((*source)->Find("c")->bytes, ElementsAre(3));
  EXPECT_THAT((*source)->files(), ElementsAre(path("one.safetensors"), path("two.safetensors")));
}

TEST_F(ShardsTest, RefusesAnIndexThatDisagreesWithItsShards) {
  ExpectIndexRefused(R"({"a":"one.safetensors","b":"two.safetensors"})", "\"c\"");
  ExpectIndexRefused(R"({"a":"two.safetensors","b":"two.safetensors","c":"two.safetensors"})",
                     "\"a\" is not in its shard \"two.safetensors\"");
  ExpectIndexRefused(R"({"a":"one.safetensors","z":"one.safetensors"})", "\"z\"");
  ExpectIndexRefused(R"({"a":"three.safetensors"})", "\"three.safetensors\" is not in the folder");
  ExpectIndexRefused(R"({"a":"one.safetensors","a":"two.safetensors"})", "twice");
  ExpectIndexRefused("{}", "found no tensor");
}

TEST_F(ShardsTest, RefusesNamesThatLeaveTheFolder) {
  ExpectIndexRefused(R"({"a":"../one.safetensors"})", "in the same folder");
  ExpectIndexRefused(R"({"a":"/one.safetensors"})", "in the same folder");
  ExpectIndexRefused(R"({"a":"one"})", "in the same folder");
  ExpectIndexRefused(R"({"a":7})", "found 7, expected a string");
}

// All 65536 codes against a decoder written from the definition of binary16.
TEST(WidenTest, HalfIsExactForEveryCode) {
  for (uint32_t code = 0; code < 0x10000; ++code) {
    const int exponent = (code >> 10) & 31;
    const int mantissa = code & 1023;
    double value =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) value = mantissa == 0 ? std::numeric_limits<double>::infinity() : NAN;
    if (code & 0x8000) value = -value;
    const float found = HalfToFloat(static_cast<uint16_t>(code));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(found)) << code;
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(found), std::bit_cast<uint32_t>(static_cast<float>(value)))
          << code;
    }
  }
}

TEST(WidenTest, BFloat16RoundTripsAndRoundsToNearestEven) {
  for (uint32_t code = 0; code < 0x10000; ++code) {
    const float value = BFloat16ToFloat(static_cast<uint16_t>(code));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(value)))) << code;
    } else {
      EXPECT_EQ(FloatToBFloat16(value), code);
    }
  }
  EXPECT_EQ(FloatToBFloat16(1.0f + 0x1p-8f), 0x3f80);             // a tie, down to even
  EXPECT_EQ(FloatToBFloat16(1.0f + 0x3p-8f), 0x3f82);             // a tie, up to even
  EXPECT_EQ(FloatToBFloat16(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);  // above the tie
  EXPECT_EQ(FloatToBFloat16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(std::bit_cast<float>(0x7f800001u)))));
}

// The vectorized loops agree with the scalar functions, at any length and alignment.
TEST(WidenTest, ViewsOfAnyLengthAndAlignment) {
  std::mt19937 random(20231123);
  std::vector<uint8_t> bytes(400);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (int64_t n = 0; n < 100; ++n) {
      const size_t start = random() % 100;
      const TensorView view{dtype, {n}, absl::MakeConstSpan(bytes).subspan(start, 2 * n)};
      std::vector<float> out(n);
      ASSERT_TRUE(WidenToFloat("t", view, absl::MakeSpan(out)).ok());
      for (int64_t i = 0; i < n; ++i) {
        uint16_t code;
        std::memcpy(&code, view.bytes.data() + 2 * i, 2);
        const float expected = dtype == DType::kF16 ? HalfToFloat(code) : BFloat16ToFloat(code);
        EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected)) << code;
      }
    }
  }
}

TEST(WidenTest, RefusesOtherTypesAndLengths) {
  const std::vector<uint8_t> bytes(8);
  std::vector<float> out(2);
  EXPECT_THAT(
      std::string(WidenToFloat("t.x", {DType::kI32, {2}, bytes}, absl::MakeSpan(out)).message()),
      HasSubstr("tensor \"t.x\": found the type I32"));
  EXPECT_THAT(
      std::string(WidenToFloat("t.x", {DType::kF16, {4}, bytes}, absl::MakeSpan(out)).message()),
      HasSubstr("found 4 values, expected 2"));
}

}  // namespace
}  // namespace nibble
