#include "quant/model/tokenizer/sentencepiece_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "quant/base/status_macros.h"
#include "quant/base/strings.h"
#include "quant/base/utf8.h"
#include "quant/model/checkpoint/json.h"

namespace nibble {
namespace {

// Of a piece, in bytes. The trainer's limit is 16 characters; the longest known are 31 spaces.
constexpr size_t kLongestPiece = 1024;

absl::Status Broken(std::string_view what) { return absl::InvalidArgumentError(ToAbsl(what)); }

// One field of a protocol buffer's message.
struct Field {
  uint64_t number = 0;
  enum class Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 } wire = Wire::kVarint;
  uint64_t value = 0;      // of a number
  std::string_view bytes;  // of kBytes

  absl::Status Expect(Wire expected, std::string_view name) const {
    if (wire == expected) return absl::OkStatus();
    return Broken(StrCat(name, ": found the wire type ", static_cast<int>(wire), ", expected ",
                         static_cast<int>(expected)));
  }
  absl::Status Read(std::string_view name, bool& result) const {
    NIBBLE_RETURN_IF_ERROR(Expect(Wire::kVarint, name));
    result = value != 0;
    return absl::OkStatus();
  }
  absl::Status Read(std::string_view name, float& result) const {
    NIBBLE_RETURN_IF_ERROR(Expect(Wire::kFixed32, name));
    result = std::bit_cast<float>(static_cast<uint32_t>(value));
    if (std::isfinite(result)) return absl::OkStatus();
    return Broken(StrCat(name, ": found ", result, ", expected a finite number"));
  }
  absl::Status Read(std::string_view name, std::string& result) const {
    NIBBLE_RETURN_IF_ERROR(Expect(Wire::kBytes, name));
    result = std::string(bytes);
    return absl::OkStatus();
  }
  absl::Status ReadText(std::string_view name, std::string& result) const {
    NIBBLE_RETURN_IF_ERROR(Read(name, result));
    if (IsValidUtf8(result)) return absl::OkStatus();
    return Broken(StrCat(name, ": found ", Quoted(result), ", expected UTF-8"));
  }
};

// The fields of a message, in order.
class FieldReader {
 public:
  explicit FieldReader(std::string_view message) : rest_(message) {}

  // Nothing at the end.
  absl::StatusOr<std::optional<Field>> Next() {
    if (rest_.empty()) return std::optional<Field>();
    NIBBLE_ASSIGN_OR_RETURN(const uint64_t tag, Varint());
    Field field = {.number = tag >> 3, .wire = static_cast<Field::Wire>(tag & 7)};
    switch (field.wire) {
      case Field::Wire::kVarint: {
        NIBBLE_ASSIGN_OR_RETURN(field.value, Varint());
        break;
      }
      case Field::Wire::kFixed64: {
        NIBBLE_ASSIGN_OR_RETURN(field.value, Fixed(8));
        break;
      }
      case Field::Wire::kFixed32: {
        NIBBLE_ASSIGN_OR_RETURN(field.value, Fixed(4));
        break;
      }
      case Field::Wire::kBytes: {
        NIBBLE_ASSIGN_OR_RETURN(const uint64_t size, Varint());
        NIBBLE_ASSIGN_OR_RETURN(field.bytes, Take(size));
        break;
      }
      default:
        return Broken(StrCat("found the wire type ", tag & 7, ", expected 0, 1, 2 or 5"));
    }
    if (field.number == 0) return Broken("found a field 0, expected numbers from 1");
    return field;
  }

 private:
  absl::StatusOr<std::string_view> Take(uint64_t size) {
    if (size > rest_.size()) {
      return Broken(StrCat("found ", rest_.size(), " bytes, expected ", size, " of a field"));
    }
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }
  absl::StatusOr<uint64_t> Fixed(int size) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view bytes, Take(size));
    uint64_t value = 0;
    for (int i = 0; i < size; ++i) value |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
    return value;
  }
  absl::StatusOr<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      NIBBLE_ASSIGN_OR_RETURN(const uint64_t byte, Fixed(1));
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    return Broken("found a number of more than 10 bytes");
  }

  std::string_view rest_;
};

// Calls `read` for every field.
template <class Read>
absl::Status ReadMessage(const Field& message, std::string_view name, Read read) {
  NIBBLE_RETURN_IF_ERROR(message.Expect(Field::Wire::kBytes, name));
  FieldReader reader(message.bytes);
  while (true) {
    NIBBLE_ASSIGN_OR_RETURN(const std::optional<Field> field, reader.Next());
    if (!field.has_value()) return absl::OkStatus();
    NIBBLE_RETURN_IF_ERROR(read(*field));
  }
}

absl::Status ReadPiece(const Field& field, SentencePieceModel& model) {
  SentencePieceModel::Piece& piece = model.pieces.emplace_back();
  NIBBLE_RETURN_IF_ERROR(ReadMessage(field, "pieces", [&](const Field& part) -> absl::Status {
    if (part.number == 1) return part.ReadText("piece", piece.text);
    if (part.number == 2) return part.Read("score", piece.score);
    if (part.number != 3) return absl::OkStatus();
    NIBBLE_RETURN_IF_ERROR(part.Expect(Field::Wire::kVarint, "type"));
    if (part.value < 1 || part.value > 6) {
      return Broken(StrCat("type: found ", part.value, ", expected 1 to 6"));
    }
    piece.type = static_cast<SentencePieceModel::Type>(part.value);
    return absl::OkStatus();
  }));
  if (piece.text.empty() || piece.text.size() > kLongestPiece) {
    return Broken(StrCat("piece ", model.pieces.size() - 1, ": found ", piece.text.size(),
                         " bytes, expected 1 to ", kLongestPiece));
  }
  return absl::OkStatus();
}

absl::Status ReadTrainer(const Field& field, SentencePieceModel& model) {
  bool suffix = false;
  NIBBLE_RETURN_IF_ERROR(ReadMessage(field, "trainer_spec", [&](const Field& part) -> absl::Status {
    switch (part.number) {
      case 3:
        NIBBLE_RETURN_IF_ERROR(part.Expect(Field::Wire::kVarint, "model_type"));
        if (part.value != 1 && part.value != 2) {
          return absl::UnimplementedError(
              StrCat("the model type ", part.value, " is not built; built: 1 (Unigram), 2 (BPE)"));
        }
        model.kind = static_cast<SentencePieceModel::Kind>(part.value);
        return absl::OkStatus();
      case 24:
        return part.Read("treat_whitespace_as_suffix", suffix);
      case 35:
        return part.Read("byte_fallback", model.byte_fallback);
      case 44:
        return part.ReadText("unk_surface", model.unknown_surface);
      case 46:
        return part.ReadText("bos_piece", model.bos);
      case 47:
        return part.ReadText("eos_piece", model.eos);
      default:
        return absl::OkStatus();
    }
  }));
  if (!suffix) return absl::OkStatus();
  return absl::UnimplementedError("treat_whitespace_as_suffix is not built");
}

absl::Status ReadNormalizer(const Field& field, SentencePieceModel::Normalization& normalization) {
  return ReadMessage(field, "normalizer_spec", [&](const Field& part) -> absl::Status {
    switch (part.number) {
      case 2:
        return part.Read("precompiled_charsmap", normalization.charsmap);
      case 3:
        return part.Read("add_dummy_prefix", normalization.add_dummy_prefix);
      case 4:
        return part.Read("remove_extra_whitespaces", normalization.remove_extra_whitespaces);
      case 5:
        return part.Read("escape_whitespaces", normalization.escape_whitespaces);
      default:
        return absl::OkStatus();
    }
  });
}

absl::Status CheckDenormalizer(const Field& field) {
  SentencePieceModel::Normalization denormalization;
  NIBBLE_RETURN_IF_ERROR(ReadNormalizer(field, denormalization));
  if (denormalization.charsmap.empty()) return absl::OkStatus();
  return absl::UnimplementedError("a denormalizer is not built");
}

// The one unknown piece and, with byte_fallback, a piece "<0xNN>" for every byte.
absl::Status FindReserved(SentencePieceModel& model) {
  using Type = SentencePieceModel::Type;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const auto& [text, score, type] = model.pieces[id];
    if (type == Type::kByte && !model.byte_fallback) {
      return Broken(StrCat("found the byte piece ", Quoted(text), " without byte_fallback"));
    }
    if (type != Type::kUnknown) continue;
    if (model.unknown_id >= 0) return Broken("found two unknown pieces, expected one");
    model.unknown_id = static_cast<int32_t>(id);
  }
  if (model.unknown_id < 0) return Broken("found no unknown piece, expected one");
  int strange = 0;
  for (const auto& piece : model.pieces) strange += piece.type == Type::kByte;
  for (int byte = 0; model.byte_fallback && byte < 256; ++byte) {
    const std::string name = absl::StrFormat("<0x%02X>", byte);
    const std::optional<int32_t> id = model.reserved.Find(name);
    if (!id.has_value() || model.type(*id) != Type::kByte) {
      return Broken(StrCat("found byte_fallback without the byte piece ", name));
    }
    model.byte_ids[byte] = *id;
    --strange;
  }
  if (strange == 0) return absl::OkStatus();
  return Broken("found a byte piece that is not one of <0x00> to <0xFF>");
}

// Whether a U+2581 follows anything but another.
bool GoesBeyondWord(std::string_view text) {
  while (text.starts_with(kPieceSpace)) text.remove_prefix(kPieceSpace.size());
  return text.find(kPieceSpace) != std::string_view::npos;
}

absl::Status MakeTries(SentencePieceModel& model) {
  using Type = SentencePieceModel::Type;
  std::vector<std::pair<std::string_view, int32_t>> found, user_defined, reserved;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const auto& [text, score, type] = model.pieces[i];
    const auto id = static_cast<int32_t>(i);
    const bool is_found =
        type == Type::kNormal || type == Type::kUserDefined || type == Type::kUnused;
    (is_found ? found : reserved).emplace_back(text, id);
    if (is_found && GoesBeyondWord(text)) model.pieces_keep_to_words = false;
    if (type == Type::kNormal) {
      model.lowest_score = std::min(model.lowest_score, score);
      model.highest_score = std::max(model.highest_score, score);
    }
    if (type == Type::kUserDefined) user_defined.emplace_back(text, id);
  }
  NIBBLE_ASSIGN_OR_RETURN(model.found, PieceTrie::Create(std::move(found)));
  NIBBLE_ASSIGN_OR_RETURN(model.user_defined, PieceTrie::Create(std::move(user_defined)));
  NIBBLE_ASSIGN_OR_RETURN(model.reserved, PieceTrie::Create(std::move(reserved)));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SentencePieceModel> SentencePieceModel::Parse(std::string_view file) {
  SentencePieceModel model;
  const Field whole = {.wire = Field::Wire::kBytes, .bytes = file};
  NIBBLE_RETURN_IF_ERROR(ReadMessage(whole, "the model", [&](const Field& field) -> absl::Status {
    switch (field.number) {
      case 1:
        return ReadPiece(field, model);
      case 2:
        return ReadTrainer(field, model);
      case 3:
        return ReadNormalizer(field, model.normalization);
      case 5:
        return CheckDenormalizer(field);
      default:
        return absl::OkStatus();
    }
  }));
  NIBBLE_RETURN_IF_ERROR(MakeTries(model));
  NIBBLE_RETURN_IF_ERROR(FindReserved(model));
  return model;
}

int32_t SentencePieceModel::PieceToId(std::string_view text) const {
  if (const auto id = reserved.Find(text)) return *id;
  return found.Find(text).value_or(unknown_id);
}

}  // namespace nibble
