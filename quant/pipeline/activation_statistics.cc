#include "quant/pipeline/activation_statistics.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "quant/base/strings.h"

namespace nibble {
namespace {

constexpr size_t kHalf = 1 << 16;

// The unsigned integer that orders as the value does, and back.
uint32_t KeyOf(float x) {
  const auto bits = std::bit_cast<uint32_t>(x + 0.0f);  // -0 is 0
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

float ValueOf(uint32_t key) {
  return std::bit_cast<float>((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}

template <class At>
double ValueAt(const QuantilePlace& place, const At& at) {
  const double low = at(place.rank);
  return place.part == 0 ? low : low + place.part * (at(place.rank + 1) - low);
}

}  // namespace

void Moments::Add(absl::Span<const float> values) {
  Moments added;
  added.count = static_cast<double>(values.size());
  added.mean = std::accumulate(values.begin(), values.end(), 0.0) / added.count;
  for (const float x : values) {
    const double d = x - added.mean;
    added.m2 += d * d;
    added.m3 += d * d * d;
    added.m4 += d * d * d * d;
  }
  Merge(added);
}

void Moments::Merge(const Moments& b) {
  if (b.count == 0) return;
  const Moments a = *this;
  const double n = a.count + b.count;
  const double d = b.mean - a.mean;
  const double d_n = d / n;
  count = n;
  mean = a.mean + d_n * b.count;
  m2 = a.m2 + b.m2 + d * d_n * a.count * b.count;
  m3 = a.m3 + b.m3 + d * d_n * d_n * a.count * b.count * (a.count - b.count) +
       3 * d_n * (a.count * b.m2 - b.count * a.m2);
  m4 = a.m4 + b.m4 +
       d * d_n * d_n * d_n * a.count * b.count *
           (a.count * a.count - a.count * b.count + b.count * b.count) +
       6 * d_n * d_n * (a.count * a.count * b.m2 + b.count * b.count * a.m2) +
       4 * d_n * (a.count * b.m3 - b.count * a.m3);
}

QuantilePlace PlaceOf(double probability, int64_t count) {
  const double position = probability * static_cast<double>(count - 1);
  const auto rank = static_cast<int64_t>(position);
  return {rank, position - static_cast<double>(rank)};
}

std::vector<double> Quantiles(std::vector<double> values, absl::Span<const double> probabilities) {
  std::ranges::sort(values);
  std::vector<double> quantiles;
  for (const double probability : probabilities) {
    quantiles.push_back(ValueAt(PlaceOf(probability, static_cast<int64_t>(values.size())),
                                [&](int64_t rank) { return values[static_cast<size_t>(rank)]; }));
  }
  return quantiles;
}

double Moments::StandardDeviation() const { return std::sqrt(m2 / count); }

double Moments::Kurtosis() const { return m2 == 0 ? 0 : count * m4 / (m2 * m2); }

std::vector<OutlierChannel> FindOutliers(absl::Span<const float> channel_magnitudes, double ratio,
                                         int64_t limit) {
  const double median =
      Quantiles({channel_magnitudes.begin(), channel_magnitudes.end()}, {0.5}).front();
  std::vector<OutlierChannel> outliers;
  for (size_t channel = 0; channel < channel_magnitudes.size(); ++channel) {
    const double magnitude = channel_magnitudes[channel];
    if (magnitude <= ratio * median) continue;
    outliers.push_back({static_cast<int64_t>(channel), magnitude, magnitude / median});
  }
  std::ranges::stable_sort(outliers, std::greater(), &OutlierChannel::max_magnitude);
  outliers.resize(std::min(outliers.size(), static_cast<size_t>(limit)));
  return outliers;
}

FirstPass::FirstPass(int64_t channels)
    : channel_magnitudes_(static_cast<size_t>(channels)), high_counts_(kHalf) {}

absl::Status FirstPass::Add(absl::Span<const float> token) {
  float low = std::numeric_limits<float>::infinity();
  float high = -low;
  for (size_t i = 0; i < token.size(); ++i) {
    const float x = token[i];
    if (!std::isfinite(x)) {
      return absl::InvalidArgumentError(
          StrCat("found ", x, " in channel ", i, ", expected finite values"));
    }
    low = std::min(low, x);
    high = std::max(high, x);
    channel_magnitudes_[i] = std::max(channel_magnitudes_[i], std::fabs(x));
    ++high_counts_[KeyOf(x) >> 16];
  }
  min_ = token_ranges_.empty() ? low : std::min<double>(min_, low);
  max_ = token_ranges_.empty() ? high : std::max<double>(max_, high);
  token_ranges_.push_back(double{high} - double{low});
  moments_.Add(token);
  return absl::OkStatus();
}

SecondPass::SecondPass(const FirstPass& first, int bins, absl::Span<const double> probabilities)
    : first_(first),
      probabilities_(probabilities.begin(), probabilities.end()),
      histogram_(static_cast<size_t>(bins)),
      ranks_before_(kHalf),
      slice_of_(kHalf, -1) {
  std::exclusive_scan(first.high_counts().begin(), first.high_counts().end(), ranks_before_.begin(),
                      int64_t{0});
  for (const double probability : probabilities_) {
    const QuantilePlace place = PlaceOf(probability, first.values());
    Refine(place.rank);
    if (place.part > 0) Refine(place.rank + 1);
  }
}

// The high bits of the value at `rank`: the last that begin there or before, which are not empty.
size_t SecondPass::HighOf(int64_t rank) const {
  const auto after = std::ranges::upper_bound(ranks_before_, rank);
  return static_cast<size_t>(after - ranks_before_.begin() - 1);
}

void SecondPass::Refine(int64_t rank) {
  const size_t high = HighOf(rank);
  if (slice_of_[high] >= 0) return;
  slice_of_[high] = static_cast<int32_t>(slices_.size());
  slices_.push_back({static_cast<uint16_t>(high), std::vector<int64_t>(kHalf)});
}

void SecondPass::Add(absl::Span<const float> token) {
  const double width = first_.max() - first_.min();
  const auto last = static_cast<int64_t>(histogram_.size()) - 1;
  for (const float x : token) {
    const double place = width == 0 ? 1 : (x - first_.min()) / width;  // 0 to 1
    const auto bin = static_cast<int64_t>(place * static_cast<double>(histogram_.size()));
    ++histogram_[static_cast<size_t>(std::clamp<int64_t>(bin, 0, last))];
    const uint32_t key = KeyOf(x);
    if (const int32_t slice = slice_of_[key >> 16]; slice >= 0) {
      ++slices_[static_cast<size_t>(slice)].low_counts[key & (kHalf - 1)];
    }
  }
}

double SecondPass::ValueAt(int64_t rank) const {
  const size_t high = HighOf(rank);
  const Slice& slice = slices_[static_cast<size_t>(slice_of_[high])];
  int64_t left = rank - ranks_before_[high];
  uint32_t low = 0;
  while (left >= slice.low_counts[low]) left -= slice.low_counts[low++];
  return ValueOf(static_cast<uint32_t>(high) << 16 | low);
}

absl::StatusOr<std::vector<double>> SecondPass::Quantiles() const {
  for (const Slice& slice : slices_) {
    const int64_t counted =
        std::accumulate(slice.low_counts.begin(), slice.low_counts.end(), int64_t{0});
    if (const int64_t expected = first_.high_counts()[slice.high]; counted != expected) {
      return absl::InternalError(StrCat("the second pass found ", counted, " values from ",
                                        ValueOf(uint32_t{slice.high} << 16), " on, expected ",
                                        expected, " as the first"));
    }
  }
  std::vector<double> quantiles;
  for (const double probability : probabilities_) {
    quantiles.push_back(nibble::ValueAt(PlaceOf(probability, first_.values()),
                                        [this](int64_t rank) { return ValueAt(rank); }));
  }
  return quantiles;
}

}  // namespace nibble
