#include "quant/model/checkpoint/json.h"

#include <cmath>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"

namespace nibble {
namespace {

constexpr size_t kShownBytes = 96;

// Builds the document while it watches the limits.
class DocumentBuilder final : public nlohmann::json_sax<Json> {
 public:
  explicit DocumentBuilder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return Add(nullptr) != nullptr; }
  bool boolean(bool value) override { return Add(value) != nullptr; }
  bool number_integer(int64_t value) override { return Add(value) != nullptr; }
  bool number_unsigned(uint64_t value) override { return Add(value) != nullptr; }
  bool number_float(double value, const std::string&) override { return Add(value) != nullptr; }
  bool string(std::string& value) override { return Add(std::move(value)) != nullptr; }
  bool binary(Json::binary_t&) override { return Fail("binary data"); }
  bool start_object(size_t) override { return Open(Json::object()); }
  bool end_object() override { return Close(); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_array() override { return Close(); }

  bool key(std::string& key) override {
    auto [entry, inserted] = open_.back()->get_ref<Json::object_t&>().emplace(key, nullptr);
    if (!inserted) return Fail(StrCat("the key ", Quoted(key), " is there twice"));
    slot_ = &entry->second;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    return Fail(StrCat("not valid JSON at byte ", position));
  }

  const std::string& error() const { return error_; }
  Json& document() { return document_; }

 private:
  bool Fail(std::string error) {
    error_ = std::move(error);
    return false;
  }

  Json* Add(Json value) {
    if (++values_ > limits_.values) {
      Fail(StrCat("more than ", limits_.values, " values"));
      return nullptr;
    }
    if (open_.empty()) {
      document_ = std::move(value);
      return &document_;
    }
    if (open_.back()->is_object()) {
      *slot_ = std::move(value);
      return slot_;
    }
    return &open_.back()->get_ref<Json::array_t&>().emplace_back(std::move(value));
  }

  bool Open(Json container) {
    if (open_.size() == limits_.depth) {
      return Fail(StrCat("nested deeper than ", limits_.depth, " levels"));
    }
    Json* added = Add(std::move(container));
    if (added == nullptr) return false;
    open_.push_back(added);
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  const JsonLimits limits_;
  Json document_;
  std::vector<Json*> open_;
  Json* slot_ = nullptr;  // where the value of the last key goes
  size_t values_ = 0;
  std::string error_;
};

std::string Shown(const Json* value) {
  if (value == nullptr || value->is_null()) return "nothing";
  if (value->is_object()) return "an object";
  if (value->is_array()) return "a list";
  if (value->is_string()) return Quoted(value->get_ref<const std::string&>());
  return value->dump();
}

}  // namespace

std::string Quoted(std::string_view text) {
  return StrCat("\"", absl::CHexEscape(ToAbsl(text.substr(0, kShownBytes))),
                text.size() > kShownBytes ? "..." : "", "\"");
}

absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view where,
                               const JsonLimits& limits) {
  if (text.size() > limits.bytes) {
    return absl::InvalidArgumentError(
        StrCat(where, ": found ", text.size(), " bytes, expected at most ", limits.bytes));
  }
  DocumentBuilder builder(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(StrCat(where, ": ", builder.error()));
  }
  return std::move(builder.document());
}

absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path, size_t max_bytes) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    return absl::NotFoundError(StrCat(path.string(), ": no such file"));
  }
  if (!std::filesystem::is_regular_file(status)) {
    return absl::InvalidArgumentError(StrCat(path.string(), ": not a regular file"));
  }
  const uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) return absl::DataLossError(StrCat(path.string(), ": ", error.message()));
  if (bytes > max_bytes) {
    return absl::InvalidArgumentError(
        StrCat(path.string(), ": found ", bytes, " bytes, expected at most ", max_bytes));
  }
  std::string text(bytes, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), static_cast<std::streamsize>(bytes))) {
    return absl::DataLossError(StrCat(path.string(), ": can't be read"));
  }
  return text;
}

absl::StatusOr<Json> ReadJsonFile(const std::filesystem::path& path, const JsonLimits& limits) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, limits.bytes));
  return ParseJson(text, path.string(), limits);
}

absl::StatusOr<JsonObject> JsonObject::From(const Json& value, std::string where) {
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        StrCat(where, ": found ", Shown(&value), ", expected an object"));
  }
  return JsonObject(value.get_ref<const Json::object_t&>(), std::move(where));
}

const Json* JsonObject::Get(std::string_view field) const {
  const auto entry = fields_->find(field);
  return entry == fields_->end() || entry->second.is_null() ? nullptr : &entry->second;
}

absl::StatusOr<const Json*> JsonObject::Require(std::string_view field) const {
  if (const Json* value = Get(field)) return value;
  return Unexpected(field, "a value");
}

absl::Status JsonObject::Unexpected(std::string_view field, std::string_view expected) const {
  return absl::InvalidArgumentError(
      StrCat(where_, ": ", field, ": found ", Shown(Get(field)), ", expected ", expected));
}

absl::StatusOr<int64_t> JsonInt(const Json& value, std::string_view where,
                                JsonObject::IntRange range) {
  const bool fits =
      value.is_number_integer() &&
      (!value.is_number_unsigned() ||
       value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  if (!fits || value.get<int64_t>() < range.min || value.get<int64_t>() > range.max) {
    return absl::InvalidArgumentError(StrCat(where, ": found ", Shown(&value),
                                             ", expected an integer from ", range.min, " to ",
                                             range.max));
  }
  return value.get<int64_t>();
}

absl::StatusOr<int64_t> JsonObject::Int(std::string_view field, IntRange range,
                                        std::optional<int64_t> fallback) const {
  const Json* value = Get(field);
  if (value == nullptr && fallback.has_value()) return *fallback;
  static const Json kNothing;
  return JsonInt(value == nullptr ? kNothing : *value, StrCat(where_, ": ", field), range);
}

absl::StatusOr<double> JsonObject::Number(std::string_view field, NumberRange range,
                                          std::optional<double> fallback) const {
  const Json* value = Get(field);
  if (value == nullptr && fallback.has_value()) return *fallback;
  if (value == nullptr || !value->is_number() || value->get<double>() < range.min ||
      value->get<double>() > range.max) {
    return Unexpected(field, StrCat("a number from ", range.min, " to ", range.max));
  }
  return value->get<double>();
}

absl::StatusOr<bool> JsonObject::Bool(std::string_view field, std::optional<bool> fallback) const {
  const Json* value = Get(field);
  if (value == nullptr && fallback.has_value()) return *fallback;
  if (value == nullptr || !value->is_boolean()) return Unexpected(field, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonObject::String(std::string_view field,
                                               std::optional<std::string> fallback) const {
  const Json* value = Get(field);
  if (value == nullptr && fallback.has_value()) return *fallback;
  if (value == nullptr || !value->is_string()) return Unexpected(field, "a string");
  return value->get_ref<const std::string&>();
}

absl::StatusOr<JsonObject> JsonObject::Object(std::string_view field) const {
  const Json* value = Get(field);
  if (value == nullptr || !value->is_object()) return Unexpected(field, "an object");
  return From(*value, StrCat(where_, ": ", field));
}

absl::StatusOr<const Json::array_t*> JsonObject::Array(std::string_view field) const {
  const Json* value = Get(field);
  if (value == nullptr || !value->is_array()) return Unexpected(field, "a list");
  return &value->get_ref<const Json::array_t&>();
}

}  // namespace nibble
