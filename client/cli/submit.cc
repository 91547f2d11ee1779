// `nibble jobs submit` and `nibble jobs estimate`: one option for each field of JobSpec.
#include <map>
#include <memory>

#include "client/cli/commands.h"
#include "client/cli/output.h"
#include "client/cli/watch.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

struct Submission {
  v1::SubmitJobRequest request;
  bool wait = false;

  v1::JobSpec& spec() { return *request.mutable_spec(); }
};
using Shared = std::shared_ptr<Submission>;

const std::map<std::string, v1::Format> kFormats = {
    {"e2m1", v1::FORMAT_E2M1}, {"e3m0", v1::FORMAT_E3M0}, {"e4m3", v1::FORMAT_E4M3},
    {"e5m2", v1::FORMAT_E5M2}, {"int4", v1::FORMAT_INT4}, {"int8", v1::FORMAT_INT8},
    {"none", v1::FORMAT_NONE}};
const std::map<std::string, v1::ActivationFormat> kActivations = {
    {"e4m3", v1::ACTIVATION_FORMAT_E4M3},
    {"e5m2", v1::ACTIVATION_FORMAT_E5M2},
    {"int8", v1::ACTIVATION_FORMAT_INT8},
    {"none", v1::ACTIVATION_FORMAT_NONE}};
const std::map<std::string, v1::ScaleConstraint> kScales = {{"none", v1::SCALE_CONSTRAINT_NONE},
                                                            {"m1", v1::SCALE_CONSTRAINT_M1},
                                                            {"m2", v1::SCALE_CONSTRAINT_M2}};
const std::map<std::string, v1::M2Rounding> kM2Roundings = {
    {"ceil", v1::M2_ROUNDING_CEIL}, {"floor", v1::M2_ROUNDING_FLOOR}, {"mse", v1::M2_ROUNDING_MSE}};
const std::map<std::string, v1::ScaleSearch> kScaleSearches = {
    {"none", v1::SCALE_SEARCH_NONE}, {"diagonal", v1::SCALE_SEARCH_DIAGONAL}};
const std::map<std::string, v1::Method> kMethods = {{"gptq", v1::METHOD_GPTQ},
                                                    {"rtn", v1::METHOD_RTN}};
const std::map<std::string, v1::LorcMetric> kLorcMetrics = {{"weight", v1::LORC_METRIC_WEIGHT},
                                                            {"input", v1::LORC_METRIC_INPUT}};

// An option whose words stand for values of an enum; `set` gets the value.
template <class Enum, class Set>
CLI::Option* AddEnum(CLI::App& command, const std::string& name,
                     const std::map<std::string, Enum>& words, const std::string& description,
                     const Set& set) {
  return command
      .add_option_function<std::string>(
          name, [&words, set](const std::string& word) { set(words.at(word)); }, description)
      ->check(CLI::IsMember(&words));
}

// An option of type T; `set` gets the value.
template <class T, class Set>
CLI::Option* AddValue(CLI::App& command, const std::string& name, const std::string& description,
                      const Set& set) {
  return command.add_option_function<T>(name, set, description);
}

void AddNames(CLI::App& command, const Shared& job) {
  AddValue<std::string>(command, "--model", "The source model", [job](const std::string& name) {
    job->spec().set_model(name);
  })->required();
  AddValue<std::string>(command, "--output", "Name of the artifact to make; it must be free",
                        [job](const std::string& name) { job->spec().set_output(name); })
      ->required();
  AddValue<int32_t>(command, "--priority", "Higher runs first; 0 is normal",
                    [job](int32_t priority) { job->spec().set_priority(priority); });
}

void AddFormats(CLI::App& command, const Shared& job) {
  AddEnum(command, "--weights", kFormats, "Format of the linears' weights",
          [job](v1::Format format) { job->spec().set_weights(format); })
      ->required();
  command.add_flag_callback(
      "--weights-asymmetric", [job] { job->spec().set_weights_asymmetric(true); },
      "Zero points as well (int4, int8)");
  AddEnum(command, "--activations", kActivations, "Format of the linears' inputs",
          [job](v1::ActivationFormat format) { job->spec().set_activations(format); })
      ->required();
  command.add_flag_callback(
      "--activations-symmetric", [job] { job->spec().set_activations_symmetric(true); },
      "No zero points (int8)");
  AddValue<int32_t>(command, "--group-size",
                    "Columns that share a scale: 16 to 1024, or -1 for a row; default 256",
                    [job](int32_t size) { job->spec().set_group_size(size); });
  AddEnum(command, "--scale", kScales,
          "What scales may be: any, powers of two (m1), the row's largest times 2^-k (m2)",
          [job](v1::ScaleConstraint scale) { job->spec().set_scale(scale); });
  AddEnum(command, "--m2-rounding", kM2Roundings, "How m2 rounds; default mse",
          [job](v1::M2Rounding rounding) { job->spec().set_m2_rounding(rounding); });
  AddEnum(command, "--scale-search", kScaleSearches,
          "Scales of least error, columns weighed by their inputs; default none",
          [job](v1::ScaleSearch search) { job->spec().set_scale_search(search); });
}

void AddMethod(CLI::App& command, const Shared& job) {
  AddEnum(command, "--method", kMethods, "How weights are chosen; default gptq",
          [job](v1::Method method) { job->spec().set_method(method); });
  command.add_flag_callback(
      "--no-act-order", [job] { job->spec().set_act_order(false); },
      "gptq takes columns in their natural order");
  AddValue<double>(command, "--damping",
                   "What gptq adds to the diagonal, of its mean; over 0 to 1, default 0.01",
                   [job](double damping) { job->spec().set_damping(damping); });
  AddValue<int32_t>(command, "--lorc-rank", "Rank of the low-rank compensation; 0 is none",
                    [job](int32_t rank) { job->spec().set_lorc_rank(rank); });
  AddEnum(command, "--lorc-metric", kLorcMetrics, "In which it is best; default weight",
          [job](v1::LorcMetric metric) { job->spec().set_lorc_metric(metric); });
  AddValue<int32_t>(command, "--lorc-iterations",
                    "How often the rest of it is quantized anew, up to 16; default 1",
                    [job](int32_t iterations) { job->spec().set_lorc_iterations(iterations); });
  CLI::Option* rotate = command.add_flag_callback(
      "--rotate", [job] { job->spec().set_rotate(true); },
      "Turn the residual stream by a random orthogonal matrix first");
  AddValue<uint64_t>(command, "--rotate-seed", "Seed of that matrix; default 0",
                     [job](uint64_t seed) { job->spec().set_rotate_seed(seed); })
      ->needs(rotate);
  AddValue<std::vector<std::string>>(
      command, "--exclude", "Linears to leave as they are, a glob pattern; may be repeated",
      [job](const std::vector<std::string>& patterns) {
        job->spec().mutable_exclude()->Assign(patterns.begin(), patterns.end());
      })
      ->allow_extra_args(false);
}

void AddCalibration(CLI::App& command, const Shared& job) {
  AddCompute(command, [job](v1::Compute compute) { job->spec().set_compute(compute); });
  AddValue<std::string>(
      command, "--corpus", "Calibration text, a corpus of the server",
      [job](const std::string& name) { job->spec().mutable_corpus()->set_name(name); });
  AddCorpusRange(command, [job]() -> v1::CorpusRef& { return *job->spec().mutable_corpus(); });
  AddValue<int32_t>(command, "--windows", "Windows to calibrate on; default 128",
                    [job](int32_t windows) { job->spec().set_windows(windows); });
  AddValue<int32_t>(command, "--window", "Tokens of a window; default 2048",
                    [job](int32_t window) { job->spec().set_window(window); });
}

absl::Status Submit(Client& client, const Context& context, const Submission& job) {
  NIBBLE_ASSIGN_OR_RETURN(const v1::Job submitted, client.SubmitJob(job.request));
  NIBBLE_RETURN_IF_ERROR(PrintJob(context, submitted));
  if (!job.wait) return absl::OkStatus();
  return Watch(client, context, submitted.id(), 0);
}

// Every option of the spec.
void AddSpec(CLI::App& command, const Shared& job) {
  AddNames(command, job);
  AddFormats(command, job);
  AddMethod(command, job);
  AddCalibration(command, job);
}

absl::Status Estimate(Client& client, const Context& context, const v1::JobSpec& spec) {
  v1::EstimateJobRequest request;
  *request.mutable_spec() = spec;
  NIBBLE_ASSIGN_OR_RETURN(const v1::JobEstimate estimate, client.EstimateJob(request));
  if (context.json) return PrintJson(estimate, context.terminal.out);
  PrintTable({{"WHAT", "ESTIMATE"},
              {"host memory", HumanBytes(estimate.host_memory_bytes())},
              {"device memory", HumanBytes(estimate.device_memory_bytes())},
              {"disk while it runs", HumanBytes(estimate.disk_bytes())},
              {"artifact", HumanBytes(estimate.artifact_bytes())},
              {"time", HumanSeconds(estimate.seconds())},
              {"bits per weight", Fixed(estimate.linear_bits_per_weight(), 3)},
              {"fits", estimate.fits() ? "yes" : StrCat("no: ", estimate.reason())}},
             context.terminal.out);
  return absl::OkStatus();
}

}  // namespace

void AddSubmit(CLI::App& jobs, Context& context) {
  CLI::App* submit = AddCommand(
      jobs, "submit", "Queues a quantization job",
      "  nibble jobs submit --model smollm2 --output smollm2-w4a8 --weights e2m1 \\\n"
      "    --activations e4m3 --group-size 64 --scale m2 --method gptq --lorc-rank 8 \\\n"
      "    --corpus calibration.jsonl --windows 16 --window 512 --wait\n"
      "  nibble jobs submit --model opt --output opt-int8 --weights int8 --activations none \\\n"
      "    --method rtn");
  auto job = std::make_shared<Submission>();
  AddSpec(*submit, job);
  AddValue<std::string>(*submit, "--request-id", "Makes the submission safe to repeat",
                        [job](const std::string& id) { job->request.set_request_id(id); });
  submit->add_flag("--wait", job->wait, "Show its progress; exit status 1 unless it succeeds");
  submit->callback([&context, job] {
    context.action = [&context, job](Client& client) { return Submit(client, context, *job); };
  });
}

void AddEstimate(CLI::App& jobs, Context& context) {
  CLI::App* estimate =
      AddCommand(jobs, "estimate", "What a job would need, without queueing it: memory, disk, time",
                 "  nibble jobs estimate --model smollm2 --output smollm2-w4a8 --weights e2m1 \\\n"
                 "    --activations e4m3 --group-size 64 --lorc-rank 8 --corpus calibration.jsonl");
  auto job = std::make_shared<Submission>();
  AddSpec(*estimate, job);
  estimate->callback([&context, job] {
    context.action = [&context, job](Client& client) {
      return Estimate(client, context, job->spec());
    };
  });
}

}  // namespace nibble
