#include <memory>

#include "client/cli/commands.h"
#include "client/cli/output.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

using Rows = std::vector<std::vector<std::string>>;

const std::vector<std::string> kHeading = {"NAME",   "VERSION", "KIND", "STATE",
                                           "LAYERS", "BITS",    "SIZE"};

void AddRows(const v1::Model& model, Rows& rows) {
  for (const v1::ModelVersion& version : model.versions()) {
    rows.push_back({model.name(), std::to_string(version.version()),
                    ShortName(v1::ModelKind_Name(version.kind()), "MODEL_KIND_"),
                    ShortName(v1::ModelState_Name(version.state()), "MODEL_STATE_"),
                    std::to_string(version.layers()), Fixed(version.model_bits_per_weight(), 2),
                    HumanBytes(version.bytes())});
  }
}

absl::Status PrintModel(const Context& context, const v1::Model& model) {
  if (context.json) return PrintJson(model, context.terminal.out);
  Rows rows = {kHeading};
  AddRows(model, rows);
  PrintTable(rows, context.terminal.out);
  for (const v1::ModelVersion& version : model.versions()) {
    if (version.has_failure()) {
      context.terminal.out << "version " << version.version()
                           << " failed to load: " << version.failure().message() << std::endl;
    }
  }
  return absl::OkStatus();
}

absl::Status List(Client& client, const Context& context) {
  v1::ListModelsRequest request;
  Rows rows = {kHeading};
  do {
    NIBBLE_ASSIGN_OR_RETURN(const auto response, client.ListModels(request));
    for (const v1::Model& model : response.models()) {
      if (context.json) NIBBLE_RETURN_IF_ERROR(PrintJson(model, context.terminal.out));
      AddRows(model, rows);
    }
    request.mutable_page()->set_token(response.next_page_token());
  } while (!request.page().token().empty());
  if (!context.json) PrintTable(rows, context.terminal.out);
  return absl::OkStatus();
}

// A command on one model: NAME and --version fill `request`.
template <class Request>
CLI::App* AddModelCommand(CLI::App& models, const std::string& name, const std::string& description,
                          std::shared_ptr<Request> request) {
  CLI::App* command = AddCommand(models, name, description,
                                 StrCat("  nibble models ", name, " smollm2\n  nibble models ",
                                        name, " smollm2 --version 1 --json"));
  command
      ->add_option_function<std::string>(
          "name", [request](const std::string& model) { request->set_name(model); },
          "The model's name")
      ->required();
  command->add_option_function<int64_t>(
      "--version", [request](int64_t version) { request->set_version(version); },
      "One version of it");
  return command;
}

// Runs a call that answers with the model.
template <class Request>
void SetAction(CLI::App* command, Context& context, std::shared_ptr<Request> request,
               absl::StatusOr<v1::Model> (Client::*call)(const Request&)) {
  command->callback([&context, request, call] {
    context.action = [&context, request, call](Client& client) -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(const v1::Model model, (client.*call)(*request));
      return PrintModel(context, model);
    };
  });
}

absl::Status Delete(Client& client, const Context& context, const v1::DeleteModelRequest& request) {
  NIBBLE_RETURN_IF_ERROR(client.DeleteModel(request));
  if (context.json) return PrintJson(v1::DeleteModelResponse(), context.terminal.out);
  context.terminal.out << "deleted " << request.name() << std::endl;
  return absl::OkStatus();
}

void AddList(CLI::App& models, Context& context) {
  CLI::App* list = AddCommand(models, "list", "Checkpoints and artifacts of the server",
                              "  nibble models list\n  nibble models list --json");
  list->callback([&context] {
    context.action = [&context](Client& client) { return List(client, context); };
  });
}

void AddLoad(CLI::App& models, Context& context) {
  auto request = std::make_shared<v1::LoadModelRequest>();
  CLI::App* load = AddModelCommand(models, "load", "Makes a model ready to generate", request);
  AddCompute(*load,
             [request](v1::Compute compute) { request->mutable_options()->set_compute(compute); });
  SetAction(load, context, request, &Client::LoadModel);
}

void AddUnload(CLI::App& models, Context& context) {
  auto request = std::make_shared<v1::UnloadModelRequest>();
  CLI::App* unload = AddModelCommand(models, "unload", "Frees a model's memory", request);
  unload->add_flag_callback(
      "--force", [request] { request->set_force(true); }, "Ends the requests that it serves");
  SetAction(unload, context, request, &Client::UnloadModel);
}

}  // namespace

void AddModels(CLI::App& app, Context& context) {
  CLI::App* models = AddCommand(app, "models", "Models of the server",
                                "  nibble models list\n  nibble models load smollm2");
  models->require_subcommand(1);
  AddList(*models, context);

  auto get = std::make_shared<v1::GetModelRequest>();
  CLI::App* get_command = AddModelCommand(*models, "get", "One model", get);
  get_command->add_flag_callback(
      "--report", [get] { get->set_include_report(true); },
      "With --json: also what quantization did to each layer");
  SetAction(get_command, context, get, &Client::GetModel);

  AddLoad(*models, context);
  AddUnload(*models, context);

  auto remove = std::make_shared<v1::DeleteModelRequest>();
  AddModelCommand(*models, "delete", "Removes a model's files", remove)
      ->callback([&context, remove] {
        context.action = [&context, remove](Client& client) {
          return Delete(client, context, *remove);
        };
      });
}

}  // namespace nibble
