// Statistics of the values that go into a linear, token by token (ZeroQuant-FP's figure 1). The
// tokens come twice: the second pass counts what only the first one's extremes and coarse counts
// can place. Order statistics and counts are exact, moments up to the rounding of doubles; memory
// depends on the tokens and the channels, not on their product.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace nibble {

// Central moments, merged by Pebay's formulas (Sandia report SAND2008-6212).
struct Moments {
  double count = 0;
  double mean = 0;
  double m2 = 0;  // sums of powers of the differences from the mean
  double m3 = 0;
  double m4 = 0;

  void Add(absl::Span<const float> values);
  void Merge(const Moments& other);
  double StandardDeviation() const;  // of the population
  double Kurtosis() const;           // 3 for a normal distribution; 0 when all values are equal
};

// Where a quantile lies among `count` sorted values, count >= 1: at the value `rank`, 0-based, or
// that far on the way to the next one.
struct QuantilePlace {
  int64_t rank = 0;
  double part = 0;  // 0 to less than 1
};
QuantilePlace PlaceOf(double probability, int64_t count);

// Of values in any order, at least one.
std::vector<double> Quantiles(std::vector<double> values, absl::Span<const double> probabilities);

// A channel with far larger values than the others.
struct OutlierChannel {
  int64_t channel = 0;
  double max_magnitude = 0;
  double ratio = 0;  // over the median of all channels' largest magnitudes; infinite where it is 0
};

// The channels whose largest magnitude is over `ratio` times the median's, the largest first, at
// most `limit`.
std::vector<OutlierChannel> FindOutliers(absl::Span<const float> channel_magnitudes, double ratio,
                                         int64_t limit);

class FirstPass {
 public:
  explicit FirstPass(int64_t channels);
  // INVALID_ARGUMENT for a value that is not finite.
  absl::Status Add(absl::Span<const float> token);

  int64_t values() const { return static_cast<int64_t>(moments_.count); }
  double min() const { return min_; }
  double max() const { return max_; }
  const Moments& moments() const { return moments_; }
  // Largest less smallest value of each token, in order.
  const std::vector<double>& token_ranges() const { return token_ranges_; }
  // Largest magnitude of each channel.
  const std::vector<float>& channel_magnitudes() const { return channel_magnitudes_; }
  // How many values begin with these 16 bits, in the order of the values.
  const std::vector<int64_t>& high_counts() const { return high_counts_; }

 private:
  double min_ = 0;
  double max_ = 0;
  Moments moments_;
  std::vector<double> token_ranges_;
  std::vector<float> channel_magnitudes_;
  std::vector<int64_t> high_counts_;
};

class SecondPass {
 public:
  // Of a first pass with at least one token. Quantiles can be asked for at `probabilities`: half a
  // MiB for each value of them that is not found in a neighbour's slice.
  SecondPass(const FirstPass& first, int bins, absl::Span<const double> probabilities);
  void Add(absl::Span<const float> token);
  // Bins of equal width from min to max, the last one including max.
  const std::vector<int64_t>& histogram() const { return histogram_; }
  // In the order of the probabilities. INTERNAL when the passes saw different values.
  absl::StatusOr<std::vector<double>> Quantiles() const;

 private:
  // Counts of the values that share their high 16 bits, by the low ones.
  struct Slice {
    uint16_t high = 0;
    std::vector<int64_t> low_counts;
  };
  size_t HighOf(int64_t rank) const;
  void Refine(int64_t rank);
  double ValueAt(int64_t rank) const;

  const FirstPass& first_;
  const std::vector<double> probabilities_;
  std::vector<int64_t> histogram_;
  std::vector<int64_t> ranks_before_;  // of each value of the high bits
  std::vector<int32_t> slice_of_;      // of each value of the high bits; -1: none
  std::vector<Slice> slices_;
};

}  // namespace nibble
