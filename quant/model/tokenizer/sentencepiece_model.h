// What a tokenizer.model holds: sentencepiece_model.proto of the `sentencepiece` package.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "quant/model/tokenizer/piece_trie.h"

namespace nibble {

// U+2581, which stands for a space in pieces.
inline constexpr std::string_view kPieceSpace = "\xE2\x96\x81";

struct SentencePieceModel {
  enum class Kind { kUnigram = 1, kBpe = 2 };
  enum class Type {
    kNormal = 1,
    kUnknown = 2,
    kControl = 3,
    kUserDefined = 4,
    kUnused = 5,
    kByte = 6,
  };
  struct Piece {
    std::string text;
    float score = 0;
    Type type = Type::kNormal;
  };
  struct Normalization {
    std::string charsmap;  // empty: characters stay as they are
    bool add_dummy_prefix = true;
    bool remove_extra_whitespaces = true;
    bool escape_whitespaces = true;
  };

  // Checks all that encoding and decoding rely on. INVALID_ARGUMENT for a broken file;
  // UNIMPLEMENTED for the model types word and char, white space as suffix and denormalizers.
  static absl::StatusOr<SentencePieceModel> Parse(std::string_view file);

  Type type(int32_t id) const { return pieces[id].type; }
  // As the package: an unknown text is the unknown piece.
  int32_t PieceToId(std::string_view text) const;

  std::vector<Piece> pieces;  // by id
  Kind kind = Kind::kUnigram;
  bool byte_fallback = false;
  std::string bos = "<s>", eos = "</s>";
  std::string unknown_surface = " \xE2\x81\x87 ";
  Normalization normalization;

  // Made of the pieces.
  bool pieces_keep_to_words = true;  // none of `found` has a U+2581 after anything else
  // Of normal pieces; without any, and where all are negative, as the package has it.
  float lowest_score = std::numeric_limits<float>::max();
  float highest_score = std::numeric_limits<float>::min();
  int32_t unknown_id = -1;
  std::array<int32_t, 256> byte_ids = {};  // with byte_fallback
  PieceTrie found;                         // pieces that text can become
  PieceTrie user_defined;                  // those of them that are never cut nor normalized
  PieceTrie reserved;                      // unknown, control and byte pieces
};

}  // namespace nibble
