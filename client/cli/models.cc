#include <memory>

#include "client/cli/commands.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/cpp/transfer.h"
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

struct Transfer {
  std::string folder;
  std::string name;
};

absl::Status Push(Client& client, const Context& context, const Transfer& transfer) {
  {
    Progress progress(context.terminal);
    NIBBLE_RETURN_IF_ERROR(PushModel(client, transfer.folder, transfer.name,
                                     [&](const TransferProgress& p) { Show(p, progress); }));
  }
  v1::GetModelRequest request;
  request.set_name(transfer.name);
  NIBBLE_ASSIGN_OR_RETURN(const v1::Model model, client.GetModel(request));
  return PrintModel(context, model);
}

absl::Status Pull(Client& client, const Context& context, const Transfer& transfer) {
  {
    Progress progress(context.terminal);
    NIBBLE_RETURN_IF_ERROR(PullModel(client, transfer.name, transfer.folder,
                                     [&](const TransferProgress& p) { Show(p, progress); }));
  }
  if (context.json) {
    v1::Model model;
    model.set_name(transfer.name);
    return PrintJson(model, context.terminal.out);
  }
  context.terminal.out << "pulled " << transfer.name << " into " << transfer.folder << std::endl;
  return absl::OkStatus();
}

void AddPush(CLI::App& models, Context& context) {
  auto transfer = std::make_shared<Transfer>();
  CLI::App* push = AddCommand(
      models, "push", "Sends a folder, which becomes a model of the server",
      "  nibble --server gpu7:8500 models push ./opt-1.3b opt-1.3b\n"
      "  nibble models push artifacts/opt-w4a8 opt-w4a8   # again after a break: goes on");
  push->add_option("folder", transfer->folder, "A checkpoint or artifact")->required();
  push->add_option("name", transfer->name, "Its name there; it must be free")->required();
  push->callback([&context, transfer] {
    context.action = [&context, transfer](Client& client) {
      return Push(client, context, *transfer);
    };
  });
}

void AddPull(CLI::App& models, Context& context) {
  auto transfer = std::make_shared<Transfer>();
  CLI::App* pull = AddCommand(models, "pull", "Brings a model of the server into a new folder",
                              "  nibble --server gpu7:8500 models pull opt-w4a8 ./opt-w4a8");
  pull->add_option("name", transfer->name, "The model's name")->required();
  pull->add_option("folder", transfer->folder, "Where to; it must not exist")->required();
  pull->callback([&context, transfer] {
    context.action = [&context, transfer](Client& client) {
      return Pull(client, context, *transfer);
    };
  });
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
  AddPush(*models, context);
  AddPull(*models, context);

  auto remove = std::make_shared<v1::DeleteModelRequest>();
  AddModelCommand(*models, "delete", "Removes a model's files", remove)
      ->callback([&context, remove] {
        context.action = [&context, remove](Client& client) {
          return Delete(client, context, *remove);
        };
      });
}

}  // namespace nibble
