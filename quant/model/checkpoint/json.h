// JSON that others wrote: parsed within bounds and without exceptions, and typed access to its
// fields with messages that say which field, what was found and what was expected.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nibble {

using Json = nlohmann::json;

struct JsonLimits {
  size_t bytes = size_t{16} << 20;  // of the text
  size_t values = size_t{1} << 20;  // of every kind, nested ones counted
  size_t depth = 32;
};

// INVALID_ARGUMENT, with `where` (a file, a tensor's header) in front, when the text is no JSON,
// goes beyond the limits or has an object with the same key twice.
absl::StatusOr<Json> ParseJson(std::string_view text, std::string_view where,
                               const JsonLimits& limits = {});

// A whole file. NOT_FOUND when it does not exist.
absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path, size_t max_bytes);
absl::StatusOr<Json> ReadJsonFile(const std::filesystem::path& path, const JsonLimits& limits = {});

// In quotes, with control and invalid bytes escaped, cut short when long: for messages.
std::string Quoted(std::string_view text);

// A view of one JSON object; the Json must outlive it. A field that is null counts as absent, as
// Hugging Face writes it. Without `fallback` an absent field is INVALID_ARGUMENT.
class JsonObject {
 public:
  struct IntRange {
    int64_t min = 0;
    int64_t max = std::numeric_limits<int64_t>::max();
  };
  struct NumberRange {  // both ends belong to it
    double min = std::numeric_limits<double>::lowest();
    double max = std::numeric_limits<double>::max();
  };

  // `where` is how messages call the object: "config.json: rope_scaling".
  static absl::StatusOr<JsonObject> From(const Json& value, std::string where);

  bool Has(std::string_view field) const { return Get(field) != nullptr; }
  // Null when absent.
  const Json* Get(std::string_view field) const;
  absl::StatusOr<const Json*> Require(std::string_view field) const;

  absl::StatusOr<int64_t> Int(std::string_view field, IntRange range,
                              std::optional<int64_t> fallback = std::nullopt) const;
  absl::StatusOr<double> Number(std::string_view field, NumberRange range,
                                std::optional<double> fallback = std::nullopt) const;
  absl::StatusOr<bool> Bool(std::string_view field,
                            std::optional<bool> fallback = std::nullopt) const;
  absl::StatusOr<std::string> String(std::string_view field,
                                     std::optional<std::string> fallback = std::nullopt) const;
  absl::StatusOr<JsonObject> Object(std::string_view field) const;
  absl::StatusOr<const Json::array_t*> Array(std::string_view field) const;

  const Json::object_t& fields() const { return *fields_; }
  const std::string& where() const { return where_; }

  // INVALID_ARGUMENT: "<where>: <field>: found <value>, expected <expected>".
  absl::Status Unexpected(std::string_view field, std::string_view expected) const;

 private:
  JsonObject(const Json::object_t& fields, std::string where)
      : fields_(&fields), where_(std::move(where)) {}

  const Json::object_t* fields_;
  std::string where_;
};

// Of one value, with `where` in the message.
absl::StatusOr<int64_t> JsonInt(const Json& value, std::string_view where,
                                JsonObject::IntRange range);

}  // namespace nibble
