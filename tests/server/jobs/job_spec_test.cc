// What can't be combined is refused at submission, by field; what can be is passed on.
#include "server/jobs/job_spec.h"

#include <gmock/gmock.h>

#include <fstream>
#include <functional>

#include "nibble/v1/quantization.pb.h"
#include "quant/base/status_macros.h"
#include "tests/fixtures/tiny_llama.h"
#include "tests/fixtures/tiny_opt.h"
#include "tests/temp_folder.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using v1::JobSpec;

class JobSpecTest : public testing::Test {
 protected:
  JobSpecTest() : root_{folder_.path()} {
    EXPECT_TRUE(CreateFolders(root_).ok());
    EXPECT_TRUE(WriteTinyLlama({}, root_.models() / "llama").ok());
    EXPECT_TRUE(WriteTinyOpt({}, root_.models() / "opt").ok());
    EXPECT_TRUE(WriteTinyOpt({.pre_norm = false}, root_.models() / "opt-post").ok());
    std::ofstream(root_.corpora() / "text.txt") << "text";
  }

  static JobSpec Spec() {
    JobSpec spec;
    spec.set_model("llama");
    spec.set_output("out");
    spec.set_weights(v1::FORMAT_E2M1);
    spec.set_activations(v1::ACTIVATION_FORMAT_E4M3);
    spec.mutable_corpus()->set_name("text.txt");
    return spec;
  }
  absl::StatusOr<JobPlan> Plan(const JobSpec& spec) {
    NIBBLE_ASSIGN_OR_RETURN(const JobSpec full, FillDefaults(spec, root_));
    return MakeJobPlan(full, root_);
  }

  TempFolder folder_;
  DataRoot root_;
};

struct Refusal {
  std::function<void(JobSpec&)> change;
  std::string message;  // how it begins: field and found
};

TEST_F(JobSpecTest, WhatCannotBeCombinedIsRefused) {
  const std::vector<Refusal> refusals = {
      {[](JobSpec& s) { s.set_weights_asymmetric(true); },
       "weights_asymmetric: found true with FORMAT_E2M1"},
      {[](JobSpec& s) {
         s.set_weights(v1::FORMAT_NONE);
         s.set_weights_asymmetric(true);
       },
       "weights_asymmetric: found true with FORMAT_NONE"},
      {[](JobSpec& s) {
         s.set_weights(v1::FORMAT_INT4);
         s.set_weights_asymmetric(true);
         s.set_scale(v1::SCALE_CONSTRAINT_M2);
       },
       "scale: found m2 with asymmetric weights"},
      {[](JobSpec& s) {
         s.set_weights(v1::FORMAT_INT8);
         s.set_weights_asymmetric(true);
         s.set_scale(v1::SCALE_CONSTRAINT_M1);
       },
       "scale: found m1 with asymmetric weights"},
      {[](JobSpec& s) {
         s.set_scale(v1::SCALE_CONSTRAINT_M1);
         s.set_m2_rounding(v1::M2_ROUNDING_MSE);
       },
       "m2_rounding: found M2_ROUNDING_MSE"},
      {[](JobSpec& s) { s.set_activations_symmetric(true); },
       "activations_symmetric: found true with ACTIVATION_FORMAT_E4M3"},
      {[](JobSpec& s) {
         s.set_activations(v1::ACTIVATION_FORMAT_NONE);
         s.set_activations_symmetric(true);
       },
       "activations_symmetric: found true with ACTIVATION_FORMAT_NONE"},
      {[](JobSpec& s) { s.set_group_size(48); }, "group_size: found 48"},
      {[](JobSpec& s) { s.set_group_size(2048); }, "group_size: found 2048"},
      {[](JobSpec& s) {
         s.set_weights(v1::FORMAT_NONE);
         s.set_activations(v1::ACTIVATION_FORMAT_NONE);
       },
       "weights: found none, and activations none"},
      {[](JobSpec& s) {
         s.set_weights(v1::FORMAT_NONE);
         s.set_lorc_rank(1);
       },
       "lorc_rank: found 1, expected 0 where weights are not quantized"},
      {[](JobSpec& s) { s.set_lorc_rank(33); }, "lorc_rank: found 33, expected at most 32"},
      {[](JobSpec& s) { s.set_lorc_rank(129); }, "lorc_rank: found 129, expected 0 to 128"},
      {[](JobSpec& s) { s.set_lorc_iterations(2); },
       "lorc_iterations: found 2 with lorc_rank 0, expected 1"},
      {[](JobSpec& s) {
         s.set_lorc_rank(2);
         s.set_lorc_iterations(17);
       },
       "lorc_iterations: found 17, expected 1 to 16"},
      {[](JobSpec& s) { s.set_lorc_iterations(0); }, "lorc_iterations: found 0, expected 1 to 16"},
      {[](JobSpec& s) {
         s.set_scale_search(v1::SCALE_SEARCH_DIAGONAL);
         s.set_act_order(false);
       },
       "scale_search: found diagonal with act_order false, expected none"},
      {[](JobSpec& s) {
         s.set_scale_search(v1::SCALE_SEARCH_DIAGONAL);
         s.set_weights(v1::FORMAT_INT4);
         s.set_weights_asymmetric(true);
       },
       "scale_search: found diagonal with weights_asymmetric true, expected none"},
      {[](JobSpec& s) {
         s.set_scale_search(v1::SCALE_SEARCH_DIAGONAL);
         s.set_weights(v1::FORMAT_NONE);
       },
       "scale_search: found diagonal with weights none, expected none"},
      {[](JobSpec& s) { s.set_scale_search(static_cast<v1::ScaleSearch>(9)); },
       "scale_search: found 9"},
      {[](JobSpec& s) { s.clear_corpus(); }, "corpus: found none"},
      {[](JobSpec& s) {
         s.set_method(v1::METHOD_RTN);
         s.set_lorc_rank(4);
         s.set_lorc_metric(v1::LORC_METRIC_INPUT);
         s.clear_corpus();
       },
       "corpus: found none"},
      {[](JobSpec& s) { s.set_damping(0); }, "damping: found 0"},
      {[](JobSpec& s) { s.set_windows(INT32_MAX); },
       "windows: found 2147483647, expected at most 33554432 of 128 tokens"},
      {[](JobSpec& s) { s.add_exclude(std::string("*")); },
       "exclude: found patterns that meet every linear"},
      {[](JobSpec& s) { s.add_exclude(); }, "exclude: found ''"},
      {[](JobSpec& s) { s.set_rotate_seed(1); }, "rotate_seed: found 1, expected no seed"},
      {[](JobSpec& s) {
         s.set_model("opt-post");
         s.set_rotate(true);
       },
       "rotate: found do_layer_norm_before false"},
      {[](JobSpec& s) { s.add_exclude("*.fc1"); }, "exclude: found '*.fc1'"},
      {[](JobSpec& s) {
         s.set_model("opt");
         s.add_exclude("*.mlp.*");
       },
       "exclude: found '*.mlp.*'"},
  };
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.message);
    JobSpec spec = Spec();
    refusal.change(spec);
    const absl::Status status = Plan(spec).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), StartsWith(refusal.message));
    EXPECT_THAT(status.message(), HasSubstr("expected"));
  }
}

TEST_F(JobSpecTest, DefaultsAreTheDocumentedOnes) {
  const auto plan = Plan(Spec());
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_TRUE(plan->spec.weights.has_value());
  EXPECT_EQ(plan->spec.weights->group_size, 256);
  EXPECT_EQ(plan->spec.weights->constraint, ScaleConstraint::kM2);
  EXPECT_EQ(plan->spec.weights->rounding, M2Rounding::kMse);
  EXPECT_EQ(plan->spec.method, Method::kGptq);
  EXPECT_TRUE(plan->spec.gptq.act_order);
  EXPECT_EQ(plan->spec.lorc_rank, 0);
  EXPECT_EQ(plan->spec.lorc_iterations, 1);
  EXPECT_EQ(plan->spec.scale_search, ScaleSearch::kNone);
  EXPECT_EQ(plan->spec.calibration.window_tokens, 128);  // the tiny model's context

  EXPECT_FALSE(plan->spec.rotate_seed.has_value());

  JobSpec rotated = Spec();
  rotated.set_rotate(true);
  EXPECT_EQ(FillDefaults(rotated, root_)->rotate_seed(), 0u);
  EXPECT_EQ(Plan(rotated)->spec.rotate_seed, 0u);
  rotated.set_model("opt");
  rotated.set_rotate_seed(7);
  EXPECT_EQ(Plan(rotated)->spec.rotate_seed, 7u);

  JobSpec refined = Spec();
  refined.set_scale_search(v1::SCALE_SEARCH_DIAGONAL);
  refined.set_lorc_rank(2);
  refined.set_lorc_iterations(3);
  const auto searched = Plan(refined);
  ASSERT_TRUE(searched.ok()) << searched.status();
  EXPECT_EQ(searched->spec.lorc_iterations, 3);
  EXPECT_EQ(searched->spec.scale_search, ScaleSearch::kDiagonal);

  JobSpec asymmetric = Spec();
  asymmetric.set_weights(v1::FORMAT_INT4);
  asymmetric.set_weights_asymmetric(true);
  const auto integers = Plan(asymmetric);
  ASSERT_TRUE(integers.ok()) << integers.status();
  EXPECT_EQ(integers->spec.weights->constraint, ScaleConstraint::kNone);
}

}  // namespace
}  // namespace nibble
