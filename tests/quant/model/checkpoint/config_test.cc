#include "quant/model/checkpoint/config.h"

#include <gmock/gmock.h>

#include <fstream>

#include "quant/model/checkpoint/json.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Only what has no default.
Json SmallLlama() {
  return {{"model_type", "llama"},    {"hidden_size", 64},        {"num_hidden_layers", 2},
          {"num_attention_heads", 4}, {"intermediate_size", 160}, {"vocab_size", 256}};
}
Json SmallOpt() {
  return {{"model_type", "opt"},      {"hidden_size", 64}, {"num_hidden_layers", 2},
          {"num_attention_heads", 4}, {"ffn_dim", 256},    {"vocab_size", 256}};
}

absl::StatusOr<ModelConfig> Parse(const Json& base, const Json& changes) {
  Json json = base;
  json.update(changes);
  return ParseModelConfig(json.dump());
}

void ExpectRefused(const Json& base, const Json& changes, absl::StatusCode code,
                   const std::string& message) {
  const absl::Status status = Parse(base, changes).status();
  EXPECT_EQ(status.code(), code) << changes << ": " << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(message)) << changes;
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnbuilt = absl::StatusCode::kUnimplemented;

TEST(LlamaConfigTest, DefaultsAreThoseOfTransformers) {
  const auto config = Parse(SmallLlama(), Json::object());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->family, Family::kLlama);
  EXPECT_EQ(config->kv_heads, 4);
  EXPECT_EQ(config->head_dim, 16);
  EXPECT_EQ(config->context, 2048);
  EXPECT_EQ(config->norm_eps, 1e-6);
  EXPECT_EQ(config->rope_theta, 10000);
  EXPECT_FALSE(config->rope_scaling.has_value());
  EXPECT_FALSE(config->tied_embeddings);
  EXPECT_FALSE(config->attention_bias);
  EXPECT_FALSE(config->mlp_bias);
  EXPECT_EQ(config->embed_dim, 64);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2));
  EXPECT_FALSE(config->bos_token_id.has_value());
}

TEST(LlamaConfigTest, EveryFieldIsRead) {
  const auto config = Parse(SmallLlama(), {{"num_key_value_heads", 2},
                                           {"head_dim", 80},
                                           {"max_position_embeddings", 8192},
                                           {"rms_norm_eps", 1e-5},
                                           {"rope_theta", 500000},
                                           {"tie_word_embeddings", true},
                                           {"attention_bias", true},
                                           {"mlp_bias", true},
                                           {"hidden_act", "silu"},
                                           {"bos_token_id", 1},
                                           {"eos_token_id", {7, 8}},
                                           {"rope_scaling", nullptr}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kv_heads, 2);
  EXPECT_EQ(config->head_dim, 80);
  EXPECT_EQ(config->context, 8192);
  EXPECT_EQ(config->norm_eps, 1e-5);
  EXPECT_EQ(config->rope_theta, 500000);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_TRUE(config->attention_bias);
  EXPECT_TRUE(config->mlp_bias);
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(7, 8));
}

// Both layouts, and both names of the type.
TEST(LlamaConfigTest, Llama3RopeScaling) {
  const Json scaling = {{"factor", 32.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 4096}};
  Json new_layout = scaling, old_layout = scaling, oldest_layout = scaling;
  new_layout.update({{"rope_type", "llama3"}, {"rope_theta", 500000.0}});
  old_layout.update({{"rope_type", "llama3"}});
  oldest_layout.update({{"type", "llama3"}});
  for (const Json& changes : {Json{{"rope_parameters", new_layout}},
                              Json{{"rope_theta", 500000.0}, {"rope_scaling", old_layout}},
                              Json{{"rope_theta", 500000.0}, {"rope_scaling", oldest_layout}}}) {
    const auto config = Parse(SmallLlama(), changes);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rope_theta, 500000);
    ASSERT_TRUE(config->rope_scaling.has_value()) << changes;
    EXPECT_EQ(config->rope_scaling->factor, 32);
    EXPECT_EQ(config->rope_scaling->low_freq_factor, 1);
    EXPECT_EQ(config->rope_scaling->high_freq_factor, 4);
    EXPECT_EQ(config->rope_scaling->original_context, 4096);
  }
}

TEST(LlamaConfigTest, DefaultRopeParameters) {
  const auto config = Parse(
      SmallLlama(), {{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 100000.0}}}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope_theta, 100000);
  EXPECT_FALSE(config->rope_scaling.has_value());
}

TEST(LlamaConfigTest, WhatIsNotBuiltIsNamed) {
  for (const char* type : {"linear", "dynamic", "yarn", "longrope"}) {
    ExpectRefused(SmallLlama(), {{"rope_scaling", {{"type", type}, {"factor", 2.0}}}}, kUnbuilt,
                  Quoted(type));
  }
  ExpectRefused(SmallLlama(), {{"model_type", "mistral"}}, kUnbuilt, "\"mistral\"");
  ExpectRefused(SmallLlama(), {{"hidden_act", "gelu"}}, kUnbuilt, "hidden_act: found \"gelu\"");
  ExpectRefused(SmallLlama(), {{"partial_rotary_factor", 0.5}}, kUnbuilt, "partial_rotary_factor");
}

TEST(LlamaConfigTest, WrongDimensionsAreRefused) {
  for (const char* field :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "vocab_size", "num_key_value_heads", "head_dim", "max_position_embeddings"}) {
    for (const Json& value : {Json(0), Json(-1), Json(int64_t{1} << 40), Json("64"), Json(64.5),
                              Json(18446744073709551615u), Json::array({64})}) {
      ExpectRefused(SmallLlama(), {{field, value}}, kInvalid, field);
    }
  }
  for (const char* field : {"hidden_size", "num_hidden_layers", "num_attention_heads",
                            "intermediate_size", "vocab_size", "model_type"}) {
    ExpectRefused(SmallLlama(), {{field, nullptr}}, kInvalid, field);
  }
}

TEST(LlamaConfigTest, ContradictionsAreRefused) {
  ExpectRefused(SmallLlama(), {{"num_attention_heads", 3}}, kInvalid,
                "hidden_size: found 64, expected a multiple of num_attention_heads 3");
  ExpectRefused(SmallLlama(), {{"num_key_value_heads", 3}}, kInvalid,
                "num_key_value_heads: found 3, expected a divisor of num_attention_heads 4");
  ExpectRefused(SmallLlama(), {{"num_key_value_heads", 8}}, kInvalid, "found 8");
  ExpectRefused(SmallLlama(), {{"head_dim", 15}}, kInvalid, "head_dim: found 15");
  ExpectRefused(SmallLlama(), {{"hidden_size", 4096 * 4}, {"num_attention_heads", 4}}, kInvalid,
                "hidden_size");
  ExpectRefused(SmallLlama(), {{"eos_token_id", 256}}, kInvalid, "eos_token_id: found 256");
  ExpectRefused(SmallLlama(), {{"eos_token_id", {1, "a"}}}, kInvalid, "eos_token_id: found \"a\"");
  ExpectRefused(SmallLlama(), {{"bos_token_id", -1}}, kInvalid, "bos_token_id: found -1");
  ExpectRefused(SmallLlama(), {{"rms_norm_eps", 0}}, kInvalid, "rms_norm_eps: found 0");
  ExpectRefused(SmallLlama(), {{"rope_theta", -1}}, kInvalid, "rope_theta: found -1");
  ExpectRefused(SmallLlama(),
                {{"rope_parameters", {{"rope_type", "default"}}},
                 {"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}},
                kInvalid, "beside rope_parameters");
  ExpectRefused(SmallLlama(), {{"tie_word_embeddings", 1}}, kInvalid, "found 1, expected true");
  ExpectRefused(SmallLlama(),
                {{"rope_scaling",
                  {{"type", "llama3"},
                   {"factor", 8},
                   {"low_freq_factor", 4},
                   {"high_freq_factor", 4},
                   {"original_max_position_embeddings", 8192}}}},
                kInvalid, "high_freq_factor: found 4, expected more than low_freq_factor 4");
  ExpectRefused(SmallLlama(), {{"rope_scaling", {{"type", "llama3"}}}}, kInvalid,
                "factor: found nothing");
}

TEST(OptConfigTest, DefaultsAreThoseOfTransformers) {
  const auto config = Parse(SmallOpt(), Json::object());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->family, Family::kOpt);
  EXPECT_EQ(config->intermediate, 256);
  EXPECT_EQ(config->kv_heads, 4);
  EXPECT_EQ(config->embed_dim, 64);
  EXPECT_EQ(config->norm_eps, 1e-5);
  EXPECT_TRUE(config->pre_norm);
  EXPECT_TRUE(config->final_norm);
  EXPECT_TRUE(config->attention_bias);
  EXPECT_TRUE(config->mlp_bias);
  EXPECT_TRUE(config->tied_embeddings);
}

// facebook/opt-350m: post-norm, no final norm, narrower embeddings.
TEST(OptConfigTest, PostNormVariant) {
  const auto config =
      Parse(SmallOpt(), {{"do_layer_norm_before", false}, {"word_embed_proj_dim", 32}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_FALSE(config->pre_norm);
  EXPECT_FALSE(config->final_norm);
  EXPECT_EQ(config->embed_dim, 32);
  const auto removed = Parse(SmallOpt(), {{"_remove_final_layer_norm", true}});
  EXPECT_TRUE(removed->pre_norm);
  EXPECT_FALSE(removed->final_norm);
}

TEST(OptConfigTest, WrongOnesAreRefused) {
  ExpectRefused(SmallOpt(), {{"activation_function", "gelu"}}, kUnbuilt, "activation_function");
  ExpectRefused(SmallOpt(), {{"layer_norm_elementwise_affine", false}}, kUnbuilt,
                "layer_norm_elementwise_affine: found false");
  ExpectRefused(SmallOpt(), {{"word_embed_proj_dim", 0}}, kInvalid, "word_embed_proj_dim");
  ExpectRefused(SmallOpt(), {{"num_attention_heads", 3}}, kInvalid, "hidden_size");
  ExpectRefused(SmallOpt(), {{"ffn_dim", nullptr}}, kInvalid, "ffn_dim: found nothing");
}

TEST(LoadModelConfigTest, GenerationConfigNamesTheEndTokens) {
  TempFolder folder;
  EXPECT_EQ(LoadModelConfig(folder.path()).status().code(), absl::StatusCode::kNotFound);
  std::ofstream(folder.path() / "config.json") << SmallLlama();
  EXPECT_THAT(LoadModelConfig(folder.path())->eos_token_ids, ElementsAre(2));
  std::ofstream(folder.path() / "generation_config.json") << R"({"eos_token_id":[5,6]})";
  EXPECT_THAT(LoadModelConfig(folder.path())->eos_token_ids, ElementsAre(5, 6));
}

TEST(ParseModelConfigTest, HostileJsonIsRefused) {
  for (const char* text : {"", "{", "[]", "7", "{\"a\":1}{}", "{\"model_type\":\"\xff\"}",
                           "{\"model_type\":\"llama\",\"model_type\":\"opt\"}", "{\"a\":1e999}"}) {
    EXPECT_EQ(ParseModelConfig(text).status().code(), kInvalid) << text;
  }
  EXPECT_THAT(std::string(ParseModelConfig(std::string(1000, '[')).status().message()),
              HasSubstr("nested deeper than 32 levels"));
  EXPECT_THAT(std::string(ParseModelConfig(std::string(17 << 20, ' ')).status().message()),
              HasSubstr("expected at most"));
}

}  // namespace
}  // namespace nibble
