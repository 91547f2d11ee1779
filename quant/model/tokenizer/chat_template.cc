#include <optional>
#include <system_error>

#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/utf8.h"
#include "quant/model/checkpoint/json.h"
#include "quant/model/tokenizer/tokenizer.h"

namespace nibble {
namespace {

constexpr size_t kMaxTemplateBytes = size_t{1} << 20;
constexpr std::string_view kSystemStart = "<|im_start|>system\n";
constexpr std::string_view kTurnEnd = "<|im_end|>";

bool Has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// A token of tokenizer_config.json: its text, or an object with its "content".
absl::StatusOr<std::string> TokenText(const JsonObject& config, std::string_view field) {
  const Json* value = config.Get(field);
  if (value == nullptr || !value->is_object()) return config.String(field, "");
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject token, config.Object(field));
  return token.String("content");
}

// "chat_template": a text, or a list of named ones of which "default" counts. Empty when absent.
absl::StatusOr<std::string> TemplateInConfig(const JsonObject& config) {
  const Json* value = config.Get("chat_template");
  if (value == nullptr || !value->is_array()) return config.String("chat_template", "");
  for (const Json& item : *value) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject entry,
                            JsonObject::From(item, StrCat(config.where(), ": chat_template")));
    NIBBLE_ASSIGN_OR_RETURN(const std::string name, entry.String("name"));
    if (name == "default") return entry.String("template");
  }
  return std::string();
}

// The value of the Jinja string literal that begins at text[0], a quote; nothing when it is open.
std::optional<std::string> StringLiteral(std::string_view text) {
  std::string value;
  for (size_t i = 1; i < text.size(); ++i) {
    if (text[i] == text[0]) return value;
    if (text[i] == '\\' && i + 1 < text.size()) {
      ++i;
      value += text[i] == 'n' ? '\n' : text[i] == 't' ? '\t' : text[i];
    } else {
      value += text[i];
    }
  }
  return std::nullopt;
}

// The system turn that a ChatML template says by itself: one literal with both its marks.
std::optional<std::string> DefaultSystem(std::string_view source) {
  for (size_t at = 1; at < source.size(); ++at) {
    const bool quoted = source[at - 1] == '\'' || source[at - 1] == '"';
    if (!quoted || !source.substr(at).starts_with("<|im_start|>system")) continue;
    const std::optional<std::string> literal = StringLiteral(source.substr(at - 1));
    if (!literal.has_value() || !literal->starts_with(kSystemStart)) continue;
    const std::string_view turn = std::string_view(*literal).substr(kSystemStart.size());
    if (const size_t end = turn.find(kTurnEnd); end != std::string_view::npos) {
      return std::string(turn.substr(0, end));
    }
  }
  return std::nullopt;
}

std::string_view Trimmed(std::string_view text) {
  while (!text.empty() && IsWhiteSpace(NextUtf8(text).code_point)) {
    text.remove_prefix(NextUtf8(text).bytes);
  }
  while (!text.empty() && IsWhiteSpace(LastUtf8(text).code_point)) {
    text.remove_suffix(LastUtf8(text).bytes);
  }
  return text;
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Load(const std::filesystem::path& folder) {
  std::string source, bos;
  const std::filesystem::path config_path = folder / "tokenizer_config.json";
  const std::filesystem::path source_path = folder / "chat_template.jinja";
  std::error_code error;
  if (std::filesystem::exists(config_path, error)) {
    NIBBLE_ASSIGN_OR_RETURN(const Json document, ReadJsonFile(config_path));
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject config,
                            JsonObject::From(document, config_path.string()));
    NIBBLE_ASSIGN_OR_RETURN(bos, TokenText(config, "bos_token"));
    NIBBLE_ASSIGN_OR_RETURN(source, TemplateInConfig(config));
  }
  if (std::filesystem::exists(source_path, error)) {
    NIBBLE_ASSIGN_OR_RETURN(source, ReadTextFile(source_path, kMaxTemplateBytes));
  }
  if (source.empty()) {
    return absl::NotFoundError(StrCat(folder.string(), ": the model has no chat template"));
  }

  ChatTemplate chat;
  chat.trim_ = Has(source, "| trim") || Has(source, "|trim");
  if (Has(source, "bos_token")) chat.bos_ = bos;
  if (Has(source, "<|start_header_id|>") && Has(source, "<|eot_id|>")) {
    if (Has(source, "Today Date")) {
      return absl::UnimplementedError(
          StrCat(folder.string(), ": chat templates that say today's date are not built"));
    }
    chat.style_ = Style::kLlama3;
  } else if (Has(source, "<|im_start|>") && Has(source, kTurnEnd)) {
    chat.style_ = Style::kChatMl;
    const std::optional<std::string> system = DefaultSystem(source);
    chat.has_default_system_ = system.has_value();
    chat.default_system_ = system.value_or("");
  } else {
    return absl::UnimplementedError(
        StrCat(folder.string(), ": found the chat template ", Quoted(source),
               "; built are ChatML (<|im_start|>) and Llama-3 (<|start_header_id|>)"));
  }
  return chat;
}

absl::StatusOr<std::string> ChatTemplate::Render(absl::Span<const ChatMessage> messages) const {
  if (messages.empty()) {
    return absl::InvalidArgumentError("messages: found none, expected one or more");
  }
  std::string text = bos_;
  const auto open_turn = [&](std::string_view role) {
    text += style_ == Style::kChatMl ? StrCat("<|im_start|>", role, "\n")
                                     : StrCat("<|start_header_id|>", role, "<|end_header_id|>\n\n");
  };
  const auto add_turn = [&](std::string_view role, std::string_view content) {
    open_turn(role);
    text += content;
    text += style_ == Style::kChatMl ? "<|im_end|>\n" : "<|eot_id|>";
  };
  if (has_default_system_ && messages[0].role != "system") add_turn("system", default_system_);
  for (const ChatMessage& message : messages) {
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      return absl::InvalidArgumentError(
          StrCat("role: found ", Quoted(message.role), ", expected system, user or assistant"));
    }
    // Trimming walks code points.
    const std::string content = ReplaceInvalidUtf8(message.content);
    add_turn(message.role, trim_ ? Trimmed(content) : content);
  }
  open_turn("assistant");
  return text;
}

}  // namespace nibble
