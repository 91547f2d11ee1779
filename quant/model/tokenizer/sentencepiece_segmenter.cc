#include "quant/model/tokenizer/sentencepiece_segmenter.h"

#include <algorithm>
#include <optional>
#include <queue>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "quant/base/strings.h"
#include "quant/base/utf8.h"

namespace nibble {
namespace {

using Type = SentencePieceModel::Type;

constexpr int32_t kNone = -1;
// Below the lowest score, of a character without a piece.
constexpr float kUnknownPenalty = 10.0f;

// The merging of one text.
class Merger {
 public:
  Merger(const SentencePieceModel& model, std::string_view text) : model_(model) {
    while (!text.empty()) {
      const size_t whole = model.user_defined.LongestPrefix(text);
      const size_t bytes = whole > 0 ? whole : NextUtf8(text).bytes;
      const auto at = static_cast<int32_t>(symbols_.size());
      symbols_.push_back({.text = text.substr(0, bytes),
                          .previous = at - 1,
                          .next = at + 1,
                          .never_merges = whole > 0});
      text.remove_prefix(bytes);
    }
    if (!symbols_.empty()) symbols_.back().next = kNone;
  }

  std::vector<PieceSegment> Run() {
    for (int32_t i = 1; i < static_cast<int32_t>(symbols_.size()); ++i) Propose(i - 1, i);
    while (!merges_.empty()) {
      const Merge merge = merges_.top();
      merges_.pop();
      Symbol &left = symbols_[merge.left], &right = symbols_[merge.right];
      if (left.text.empty() || right.text.empty() ||
          left.text.size() + right.text.size() != merge.bytes) {
        continue;  // one of them has merged since
      }
      left.text = Union(left, right);
      left.next = right.next;
      if (right.next != kNone) symbols_[right.next].previous = merge.left;
      right.text = {};
      Propose(left.previous, merge.left);
      Propose(merge.left, left.next);
    }
    std::vector<PieceSegment> segments;
    for (int32_t at = symbols_.empty() ? kNone : 0; at != kNone; at = symbols_[at].next) {
      Emit(symbols_[at].text, segments);
    }
    return segments;
  }

 private:
  struct Symbol {
    std::string_view text;  // empty: now part of one to the left
    int32_t previous, next;
    bool never_merges;
  };
  struct Merge {
    float score;
    int32_t left, right;
    size_t bytes;  // of both
    bool operator<(const Merge& other) const {
      return score < other.score || (score == other.score && left > other.left);
    }
  };

  static std::string_view Union(const Symbol& left, const Symbol& right) {
    return {left.text.data(), left.text.size() + right.text.size()};
  }

  void Propose(int32_t left, int32_t right) {
    if (left == kNone || right == kNone) return;
    const Symbol &first = symbols_[left], &second = symbols_[right];
    if (first.never_merges || second.never_merges) return;
    const std::string_view text = Union(first, second);
    const std::optional<int32_t> id = model_.found.Find(text);
    if (!id.has_value()) return;
    merges_.push({model_.pieces[*id].score, left, right, text.size()});
    if (model_.type(*id) == Type::kUnused) {
      halves_[ToAbsl(text)] = {first.text, second.text};
    }
  }

  // Unused pieces only help to merge: what is left of them falls into its halves again.
  void Emit(std::string_view text, std::vector<PieceSegment>& segments) const {
    const int32_t id = model_.PieceToId(text);
    if (model_.type(id) == Type::kUnused) {
      if (const auto both = halves_.find(ToAbsl(text)); both != halves_.end()) {
        Emit(both->second.first, segments);
        Emit(both->second.second, segments);
        return;
      }
    }
    segments.push_back({text, id});
  }

  const SentencePieceModel& model_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Merge> merges_;
  absl::flat_hash_map<absl::string_view, std::pair<std::string_view, std::string_view>> halves_;
};

// Sums in double. The package sums in another order: where two segmentations are equal but for
// rounding, it may choose the other.
class BestPath {
 public:
  BestPath(const SentencePieceModel& model, std::string_view text)
      : model_(model), text_(text), best_(text.size() + 1) {}

  std::vector<PieceSegment> Run() {
    for (size_t begin = 0; begin < text_.size();) begin += Extend(begin);
    std::vector<PieceSegment> segments;
    for (size_t end = text_.size(); end > 0; end = best_[end].begin) {
      segments.push_back({text_.substr(best_[end].begin, end - best_[end].begin), best_[end].id});
    }
    std::reverse(segments.begin(), segments.end());
    return segments;
  }

 private:
  // The best last piece of the text up to here, and the score of all.
  struct End {
    double score = 0;
    int32_t id = kNone;
    size_t begin = 0;
  };

  // Tries all the pieces that begin here. Returns the bytes of the first character.
  size_t Extend(size_t begin) {
    const size_t character = NextUtf8(text_.substr(begin)).bytes;
    const double so_far = best_[begin].score;
    bool has_character = false;
    std::optional<PieceTrie::Node> node = PieceTrie::kRoot;
    for (size_t end = begin; end < text_.size();) {
      node = model_.found.Child(*node, text_[end++]);
      if (!node.has_value()) break;
      const std::optional<int32_t> id = model_.found.Id(*node);
      if (!id.has_value() || model_.type(*id) == Type::kUnused) continue;
      Offer(begin, end, *id, Score(*id, end - begin) + so_far);
      has_character |= end - begin == character;
    }
    if (!has_character) {
      Offer(begin, begin + character, model_.unknown_id,
            model_.lowest_score - kUnknownPenalty + so_far);
    }
    return character;
  }

  // User-defined pieces always win.
  double Score(int32_t id, size_t bytes) const {
    if (model_.type(id) != Type::kUserDefined) return model_.pieces[id].score;
    return static_cast<float>(bytes) * model_.highest_score - 0.1;
  }

  void Offer(size_t begin, size_t end, int32_t id, double score) {
    End& best = best_[end];
    if (best.id == kNone || score > best.score) {
      best = {.score = score, .id = id, .begin = begin};
    }
  }

  const SentencePieceModel& model_;
  std::string_view text_;
  std::vector<End> best_;  // by where they end
};

std::vector<PieceSegment> SegmentWord(const SentencePieceModel& model, std::string_view word) {
  return model.kind == SentencePieceModel::Kind::kBpe ? Merger(model, word).Run()
                                                      : BestPath(model, word).Run();
}

// The bytes of the first word: U+2581s and what follows up to the next.
size_t WordBytes(std::string_view text) {
  size_t spaces = 0;
  while (text.substr(spaces).starts_with(kPieceSpace)) spaces += kPieceSpace.size();
  return std::min(text.find(kPieceSpace, spaces), text.size());
}

}  // namespace

std::vector<PieceSegment> Segment(const SentencePieceModel& model, std::string_view normalized) {
  if (!model.pieces_keep_to_words) return SegmentWord(model, normalized);
  struct Span {
    size_t begin, end;  // of `segments`
  };
  absl::flat_hash_map<absl::string_view, Span> seen;
  std::vector<PieceSegment> segments;
  while (!normalized.empty()) {
    const std::string_view word = normalized.substr(0, WordBytes(normalized));
    normalized.remove_prefix(word.size());
    const auto [known, is_new] = seen.try_emplace(ToAbsl(word));
    if (is_new) {
      const size_t begin = segments.size();
      for (const PieceSegment& segment : SegmentWord(model, word)) segments.push_back(segment);
      known->second = {begin, segments.size()};
    } else {
      for (size_t i = known->second.begin; i < known->second.end; ++i) {
        segments.push_back(segments[i]);
      }
    }
  }
  return segments;
}

}  // namespace nibble
