// Sums in a fixed order: lanes within a chunk of a row, then chunks, then strips, then nothing
// else.
#pragma once

#include <cstdint>
#include <vector>

namespace diffreg {

constexpr int64_t kLanes = 16;
constexpr int64_t kChunk = 16 * kLanes;  // terms added in T before they go to double

// Sum of term(x) for begin <= x < end. Lanes are explicit, so that vector code keeps the order.
template <typename T, typename Term>
double sum_row(int64_t begin, int64_t end, const Term& term) {
  double total = 0;
  while (begin < end) {
    const int64_t stop = end - begin < kChunk ? end : begin + kChunk;
    T lanes[kLanes] = {};
    for (; begin + kLanes <= stop; begin += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(begin + lane);
    }
    for (int64_t lane = 0; begin < stop; ++begin, ++lane) lanes[lane] += term(begin);
    for (int64_t lane = 0; lane < kLanes; ++lane) total += static_cast<double>(lanes[lane]);
  }
  return total;
}

// K sums per (sample, strip), combined in the order of the strips.
template <int K>
class StripSums {
 public:
  StripSums(int64_t samples, int64_t strips) : strips_(strips), sums_(samples * strips * K) {}

  double* at(int64_t sample, int64_t strip) { return &sums_[(sample * strips_ + strip) * K]; }

  double total(int64_t sample, int k) const {
    double sum = 0;
    for (int64_t s = 0; s < strips_; ++s) sum += sums_[(sample * strips_ + s) * K + k];
    return sum;
  }

 private:
  int64_t strips_;
  std::vector<double> sums_;
};

}  // namespace diffreg
