// `nibble evaluate profile`.
#include <map>
#include <memory>

#include "client/cli/commands.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

using Request = v1::ProfileActivationsRequest;
using Rows = std::vector<std::vector<std::string>>;

const std::map<std::string, v1::ActivationSite> kSites = {
    {"qkv", v1::ACTIVATION_SITE_QKV},
    {"attention_output", v1::ACTIVATION_SITE_ATTENTION_OUTPUT},
    {"mlp_input", v1::ACTIVATION_SITE_MLP_INPUT},
    {"mlp_output", v1::ACTIVATION_SITE_MLP_OUTPUT}};

v1::PlacementFormat PlacementOf(v1::ActivationFormat format, bool symmetric) {
  v1::PlacementFormat placement;
  placement.set_format(format);
  placement.set_symmetric(symmetric);
  return placement;
}

const std::map<std::string, v1::PlacementFormat> kPlacements = {
    {"int8", PlacementOf(v1::ACTIVATION_FORMAT_INT8, false)},
    {"int8-symmetric", PlacementOf(v1::ACTIVATION_FORMAT_INT8, true)},
    {"e4m3", PlacementOf(v1::ACTIVATION_FORMAT_E4M3, false)},
    {"e5m2", PlacementOf(v1::ACTIVATION_FORMAT_E5M2, false)}};

std::string NameOf(const v1::PlacementFormat& format) {
  const std::string name =
      ShortName(v1::ActivationFormat_Name(format.format()), "ACTIVATION_FORMAT_");
  return format.symmetric() ? name + "-SYMMETRIC" : name;
}

// What the request's quantiles hold of 0.5, the median.
std::string Median(const google::protobuf::RepeatedPtrField<v1::Quantile>& quantiles) {
  for (const v1::Quantile& quantile : quantiles) {
    if (quantile.probability() == 0.5) return Fixed(quantile.value(), 3);
  }
  return "-";
}

Rows Heading(const v1::ActivationProfile& profile) {
  Rows rows = {
      {"LAYER", "SITE", "MIN", "MAX", "MEAN", "STD", "KURTOSIS", "TOKEN RANGE", "OUTLIERS"}};
  for (const v1::Placement& placement : profile.placements()) {
    rows[0].push_back(NameOf(placement.format()) + " ERROR");
  }
  return rows;
}

void AddRow(const v1::ActivationProfile& profile, Rows& rows) {
  if (rows.empty()) rows = Heading(profile);
  rows.push_back({std::to_string(profile.layer()),
                  ShortName(v1::ActivationSite_Name(profile.site()), "ACTIVATION_SITE_"),
                  Fixed(profile.min(), 3), Fixed(profile.max(), 3), Fixed(profile.mean(), 4),
                  Fixed(profile.standard_deviation(), 4), Fixed(profile.kurtosis(), 1),
                  Median(profile.token_range_quantiles()),
                  std::to_string(profile.outlier_channels_size())});
  for (const v1::Placement& placement : profile.placements()) {
    rows.back().push_back(Fixed(placement.relative_error(), 5));
  }
}

absl::Status Profile(Client& client, const Context& context, const Request& request) {
  absl::Status printed;
  bool done = false;
  Rows rows;
  {
    Progress progress(context.terminal);
    NIBBLE_RETURN_IF_ERROR(
        client.ProfileActivations(request, [&](const v1::ProfileActivationsResponse& response) {
          done = response.done();
          if (context.json) {
            printed = PrintJson(response, context.terminal.out);
          } else if (response.layers_total() > 0) {
            progress.Show(response.layers_done(), response.layers_total(), Describe(response));
          }
          if (response.has_profile()) AddRow(response.profile(), rows);
          return printed.ok();
        }));
  }
  if (!done) return absl::UnknownError("the profile's stream ended early, expected its end");
  if (!context.json) PrintTable(rows, context.terminal.out);
  return absl::OkStatus();
}

void AddText(CLI::App& command, const std::shared_ptr<Request>& request) {
  command
      .add_option_function<std::string>(
          "--model", [request](const std::string& name) { request->set_model(name); },
          "The model's name")
      ->required();
  command
      .add_option_function<std::string>(
          "--corpus",
          [request](const std::string& name) { request->mutable_corpus()->set_name(name); },
          "A corpus of the server")
      ->required();
  AddCorpusRange(command, [request]() -> v1::CorpusRef& { return *request->mutable_corpus(); });
  command.add_option_function<int32_t>(
      "--window", [request](int32_t value) { request->set_window(value); },
      "Tokens of a window; default 2048, or the context where that is less");
  command.add_option_function<int32_t>(
      "--windows", [request](int32_t value) { request->set_windows(value); },
      "The first so many windows; default 16");
  AddCompute(command, [request](v1::Compute compute) { request->set_compute(compute); });
}

void AddPlaces(CLI::App& command, const std::shared_ptr<Request>& request) {
  command
      .add_option_function<std::vector<int32_t>>(
          "--layer",
          [request](const std::vector<int32_t>& layers) {
            request->mutable_layers()->Assign(layers.begin(), layers.end());
          },
          "A decoder layer, from 0; may be repeated; default all")
      ->allow_extra_args(false);
  command
      .add_option_function<std::vector<std::string>>(
          "--site",
          [request](const std::vector<std::string>& sites) {
            for (const std::string& site : sites) request->add_sites(kSites.at(site));
          },
          "Which linears' inputs; may be repeated; default all")
      ->check(CLI::IsMember(&kSites))
      ->allow_extra_args(false);
}

void AddMeasures(CLI::App& command, const std::shared_ptr<Request>& request) {
  command.add_option_function<int32_t>(
      "--bins", [request](int32_t bins) { request->set_histogram_bins(bins); },
      "Of the histograms; default 256");
  command
      .add_option_function<std::vector<double>>(
          "--quantile",
          [request](const std::vector<double>& quantiles) {
            request->mutable_quantiles()->Assign(quantiles.begin(), quantiles.end());
          },
          "A probability of 0 to 1; may be repeated; default eleven from 0 to 1")
      ->allow_extra_args(false);
  command.add_option_function<double>(
      "--outlier-ratio", [request](double ratio) { request->set_outlier_ratio(ratio); },
      "A channel this many times larger than the median one is an outlier; default 20");
  command.add_option_function<int32_t>(
      "--outliers", [request](int32_t count) { request->set_outlier_channels(count); },
      "Most outlier channels to list; default 32");
  CLI::Option* token = command.add_option_function<int64_t>(
      "--token", [request](int64_t index) { request->set_placement_token(index); },
      "Show how formats place this token's values, counted from 0 through the windows");
  command
      .add_option_function<std::vector<std::string>>(
          "--format",
          [request](const std::vector<std::string>& formats) {
            for (const std::string& format : formats) {
              *request->add_placement_formats() = kPlacements.at(format);
            }
          },
          "Which formats; may be repeated; default int8, e4m3 and e5m2")
      ->check(CLI::IsMember(&kPlacements))
      ->allow_extra_args(false)
      ->needs(token);
}

}  // namespace

void AddProfile(CLI::App& evaluate, Context& context) {
  CLI::App* command = AddCommand(
      evaluate, "profile", "What goes into the linears: distribution, outliers, rounding",
      "  nibble evaluate profile --model smollm2 --corpus c4.jsonl --windows 4 --window 512\n"
      "  nibble evaluate profile --model smollm2 --corpus c4.jsonl --layer 0 --site mlp_output \\\n"
      "    --token 100 --json > profile.jsonl   # for `nibble report --profile`");
  auto request = std::make_shared<Request>();
  AddText(*command, request);
  AddPlaces(*command, request);
  AddMeasures(*command, request);
  command->callback([&context, request] {
    context.action = [&context, request](Client& client) {
      return Profile(client, context, *request);
    };
  });
}

}  // namespace nibble
