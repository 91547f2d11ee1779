#include "server/runner/sampling.h"

#include <algorithm>
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

struct Candidate {
  int32_t token;
  double probability;
};

// Every id by falling probability (ties: lowest id first), cut to top-k.
std::vector<Candidate> RankedCandidates(const SamplingParams& sampling,
                                        absl::Span<const float> logits) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const size_t keep =
      sampling.top_k > 0 ? std::min(ids.size(), static_cast<size_t>(sampling.top_k)) : ids.size();
  std::partial_sort(
      ids.begin(), ids.begin() + static_cast<int64_t>(keep), ids.end(),
      [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  std::vector<Candidate> candidates;
  double sum = 0;
  for (size_t i = 0; i < keep; ++i) {
    const double scaled = (static_cast<double>(logits[ids[i]]) - logits[ids[0]]) /
                          static_cast<double>(sampling.temperature);
    candidates.push_back({ids[i], std::exp(scaled)});
    sum += candidates.back().probability;
  }
  for (Candidate& candidate : candidates) candidate.probability /= sum;
  return candidates;
}

// How many of the ranked candidates min-p and top-p leave; at least one.
size_t Nucleus(const SamplingParams& sampling, const std::vector<Candidate>& candidates) {
  const double least = sampling.min_p * candidates[0].probability;
  double sum = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (i > 0 && candidates[i].probability < least) return i;
    sum += candidates[i].probability;
    if (sampling.top_p < 1 && sum >= sampling.top_p) return i + 1;
  }
  return candidates.size();
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
  if (sampling.temperature == 0) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  const std::vector<Candidate> candidates = RankedCandidates(sampling, logits);
  const size_t kept = Nucleus(sampling, candidates);
  double mass = 0;
  for (size_t i = 0; i < kept; ++i) mass += candidates[i].probability;
  const int64_t position = input.position + static_cast<int64_t>(input.tokens.size());
  double left = UniformDraw(sampling.seed, position) * mass;
  for (size_t i = 0; i < kept; ++i) {
    left -= candidates[i].probability;
    if (left < 0) return candidates[i].token;
  }
  return candidates[kept - 1].token;
}

TokenLogprob Logprob(absl::Span<const float> logits, int32_t token, int32_t top) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  const double log_sum = std::log(sum) + largest;
  const auto logprob = [&](int32_t id) { return static_cast<float>(logits[id] - log_sum); };
  TokenLogprob out{token, logprob(token), {}};
  if (top <= 0) return out;
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const int64_t keep = std::min<int64_t>(top, static_cast<int64_t>(ids.size()));
  std::partial_sort(ids.begin(), ids.begin() + keep, ids.end(), [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  for (int64_t i = 0; i < keep; ++i) out.top.emplace_back(ids[i], logprob(ids[i]));
  return out;
}

}  // namespace nibble
