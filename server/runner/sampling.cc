#include "server/runner/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/container/flat_hash_map.h"

namespace nibble {
namespace {

// splitmix64's finalizer.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

void Penalize(const SequenceInput& input, absl::Span<float> logits) {
  const SamplingParams& sampling = input.sampling;
  absl::flat_hash_map<int32_t, int64_t> produced;  // seen tokens -> times in the output
  for (size_t i = 0; i < input.history.size(); ++i) {
    produced[input.history[i]] += static_cast<int64_t>(i) >= input.history_prompt ? 1 : 0;
  }
  for (const auto& [token, times] : produced) {
    float& logit = logits[token];
    logit = logit > 0 ? logit / sampling.repetition_penalty : logit * sampling.repetition_penalty;
    if (times > 0) {
      logit -= sampling.presence_penalty + sampling.frequency_penalty * static_cast<float>(times);
    }
  }
}

// By falling logit, ties by rising id.
bool Before(absl::Span<const float> logits, int32_t a, int32_t b) {
  return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
}

std::vector<int32_t> AllIds(absl::Span<const float> logits) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

// Of equal ones the first.
int32_t Largest(absl::Span<const float> logits) {
  constexpr size_t kLanes = 16;  // independent, so that they are compared side by side
  std::array<float, kLanes> most;
  most.fill(-std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) most[j] = std::max(most[j], logits[i + j]);
  }
  for (; i < logits.size(); ++i) most[0] = std::max(most[0], logits[i]);
  const float largest = *std::ranges::max_element(most);
  return static_cast<int32_t>(std::ranges::find(logits, largest) - logits.begin());
}

// The ids by falling probability, cut to top-k; put in order only as far as they are asked for.
class Ranking {
 public:
  Ranking(const SamplingParams& sampling, absl::Span<const float> logits)
      : logits_(logits), temperature_(sampling.temperature), ids_(AllIds(logits)) {
    largest_ = logits[Largest(logits)];
    if (sampling.top_k > 0 && static_cast<size_t>(sampling.top_k) < ids_.size()) {
      OrderTo(sampling.top_k);
      ids_.resize(sampling.top_k);
    }
    for (const int32_t id : ids_) sum_ += Weight(id);
  }

  size_t size() const { return ids_.size(); }
  int32_t token(size_t i) {
    if (i >= ordered_) OrderTo(std::min(std::max<size_t>(2 * i, kFirst), ids_.size()));
    return ids_[i];
  }
  double probability(size_t i) { return Weight(token(i)) / sum_; }

 private:
  static constexpr size_t kFirst = 64;

  double Weight(int32_t id) const {
    return std::exp((static_cast<double>(logits_[id]) - largest_) / temperature_);
  }
  void OrderTo(size_t count) {
    const auto before = [this](int32_t a, int32_t b) { return Before(logits_, a, b); };
    const auto begin = ids_.begin() + static_cast<int64_t>(ordered_);
    const auto end = ids_.begin() + static_cast<int64_t>(count);
    if (end != ids_.end()) std::nth_element(begin, end, ids_.end(), before);
    std::sort(begin, end, before);
    ordered_ = count;
  }

  const absl::Span<const float> logits_;
  const double temperature_;
  std::vector<int32_t> ids_;
  size_t ordered_ = 0;
  double largest_ = 0;
  double sum_ = 0;
};

// The ids that min-p and top-p leave, at least one, and their probability together.
struct Nucleus {
  size_t size = 0;
  double mass = 0;
};

Nucleus Cut(const SamplingParams& sampling, Ranking& ranking) {
  if (sampling.top_p >= 1 && sampling.min_p <= 0) return {ranking.size(), 1};
  const double least = sampling.min_p * ranking.probability(0);
  Nucleus kept;
  while (kept.size < ranking.size()) {
    const double probability = ranking.probability(kept.size);
    if (kept.size > 0 && probability < least) break;
    ++kept.size;
    kept.mass += probability;
    if (sampling.top_p < 1 && kept.mass >= sampling.top_p) break;
  }
  return kept;
}

}  // namespace

double UniformDraw(uint64_t seed, int64_t position) {
  const uint64_t bits = Mix(Mix(seed + 0x9e3779b97f4a7c15u) + static_cast<uint64_t>(position));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

int32_t ChooseToken(const SequenceInput& input, absl::Span<float> logits) {
  const SamplingParams& sampling = input.sampling;
  if (!input.history.empty()) Penalize(input, logits);
  for (const auto& [token, bias] : sampling.logit_bias) logits[token] += bias;
  for (const int32_t token : input.banned) {
    logits[token] = -std::numeric_limits<float>::infinity();
  }
  if (sampling.temperature == 0) return Largest(logits);
  Ranking ranking(sampling, logits);
  const Nucleus kept = Cut(sampling, ranking);
  const int64_t position = input.position + static_cast<int64_t>(input.tokens.size());
  double left = UniformDraw(sampling.seed, position) * kept.mass;
  for (size_t i = 0; i < kept.size; ++i) {
    left -= ranking.probability(i);
    if (left < 0) return ranking.token(i);
  }
  return ranking.token(kept.size - 1);
}

TokenLogprob Logprob(absl::Span<const float> logits, int32_t token, int32_t top) {
  const float largest = logits[Largest(logits)];
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  const double log_sum = std::log(sum) + largest;
  const auto logprob = [&](int32_t id) { return static_cast<float>(logits[id] - log_sum); };
  TokenLogprob out{token, logprob(token), {}};
  if (top <= 0) return out;
  std::vector<int32_t> ids = AllIds(logits);
  const int64_t keep = std::min<int64_t>(top, static_cast<int64_t>(ids.size()));
  std::partial_sort(ids.begin(), ids.begin() + keep, ids.end(),
                    [&](int32_t a, int32_t b) { return Before(logits, a, b); });
  for (int64_t i = 0; i < keep; ++i) out.top.emplace_back(ids[i], logprob(ids[i]));
  return out;
}

}  // namespace nibble
