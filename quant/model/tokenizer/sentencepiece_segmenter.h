// Cuts normalized text into the pieces of a SentencePiece model, as the `sentencepiece` package.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "quant/model/tokenizer/sentencepiece_model.h"

namespace nibble {

struct PieceSegment {
  std::string_view text;
  int32_t id;  // the unknown piece's for a character that no piece has
};

// Byte pair encoding: adjacent pieces whose union is a piece merge, the highest score first, the
// leftmost of equals; O(n log n). Unigram: the pieces with the highest sum of scores (Kudo 2018,
// Viterbi); O(n) for pieces of bounded length. Where no piece goes beyond a word, words are cut
// one by one, and each only once.
std::vector<PieceSegment> Segment(const SentencePieceModel& model, std::string_view normalized);

}  // namespace nibble
