#include <filesystem>
#include <memory>

#include "client/cli/commands.h"
#include "client/cli/output.h"
#include "client/cli/progress.h"
#include "client/cpp/transfer.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

absl::Status List(Client& client, const Context& context) {
  v1::ListCorporaRequest request;
  std::vector<std::vector<std::string>> rows = {{"NAME", "TEXTS", "SIZE"}};
  do {
    NIBBLE_ASSIGN_OR_RETURN(const auto response, client.ListCorpora(request));
    for (const v1::Corpus& corpus : response.corpora()) {
      if (context.json) NIBBLE_RETURN_IF_ERROR(PrintJson(corpus, context.terminal.out));
      rows.push_back({corpus.name(), std::to_string(corpus.texts()), HumanBytes(corpus.bytes())});
    }
    request.mutable_page()->set_token(response.next_page_token());
  } while (!request.page().token().empty());
  if (!context.json) PrintTable(rows, context.terminal.out);
  return absl::OkStatus();
}

// Says what was done, or prints the message with --json.
template <class Message>
absl::Status Tell(const Context& context, const std::string& text, const Message& message) {
  if (context.json) return PrintJson(message, context.terminal.out);
  context.terminal.out << text << std::endl;
  return absl::OkStatus();
}

struct CorpusFile {
  std::string file;
  std::string name;  // empty: the file's
};

absl::Status Push(Client& client, const Context& context, const CorpusFile& corpus) {
  v1::Corpus message;
  message.set_name(corpus.name.empty() ? std::filesystem::path(corpus.file).filename().string()
                                       : corpus.name);
  {
    Progress progress(context.terminal);
    NIBBLE_RETURN_IF_ERROR(PushCorpus(client, corpus.file, message.name(),
                                      [&](const TransferProgress& p) { Show(p, progress); }));
  }
  return Tell(context, StrCat("pushed ", message.name()), message);
}

void AddPush(CLI::App& corpora, Context& context) {
  auto corpus = std::make_shared<CorpusFile>();
  CLI::App* push = AddCommand(corpora, "push", "Sends a text, which becomes a corpus of the server",
                              "  nibble corpora push ./wiki.test.txt\n"
                              "  nibble corpora push ./part-00001.jsonl c4.jsonl");
  push->add_option("file", corpus->file, "A .txt, or a .jsonl with a `text` in each line")
      ->required();
  push->add_option("name", corpus->name, "Its name there; unset: the file's");
  push->callback([&context, corpus] {
    context.action = [&context, corpus](Client& client) { return Push(client, context, *corpus); };
  });
}

void AddDelete(CLI::App& corpora, Context& context) {
  auto request = std::make_shared<v1::DeleteCorpusRequest>();
  CLI::App* command = AddCommand(corpora, "delete", "Removes a corpus of the server",
                                 "  nibble corpora delete c4.jsonl");
  command
      ->add_option_function<std::string>(
          "name", [request](const std::string& name) { request->set_name(name); }, "Its name")
      ->required();
  command->callback([&context, request] {
    context.action = [&context, request](Client& client) -> absl::Status {
      NIBBLE_RETURN_IF_ERROR(client.DeleteCorpus(*request));
      return Tell(context, StrCat("deleted ", request->name()), v1::DeleteCorpusResponse());
    };
  });
}

}  // namespace

void AddCorpora(CLI::App& app, Context& context) {
  CLI::App* corpora = AddCommand(app, "corpora", "Texts of the server",
                                 "  nibble corpora list\n  nibble corpora push ./wiki.test.txt");
  corpora->require_subcommand(1);
  CLI::App* list = AddCommand(*corpora, "list", "Texts for calibration and evaluation",
                              "  nibble corpora list\n  nibble corpora list --json");
  list->callback([&context] {
    context.action = [&context](Client& client) { return List(client, context); };
  });
  AddPush(*corpora, context);
  AddDelete(*corpora, context);
  AddTool(*corpora, context, "prepare", "Makes evaluation texts from a user's own copies");
}

}  // namespace nibble
