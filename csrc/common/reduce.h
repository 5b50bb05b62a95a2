// Sums in a fixed order: lanes within a chunk of a row, then chunks, then strips, then nothing
// else.
#pragma once

#include <cstdint>
#include <vector>

namespace diffreg {

constexpr int64_t kLanes = 16;
constexpr int64_t kChunk = 16 * kLanes;  // terms added in T before they go to double

// Adds K sums for begin <= x < end to `totals`: term(x, out) writes the K terms. Lanes are
// explicit, so that vectorising keeps the order; several sums at once hide each other's latency.
template <typename T, int K, typename Term>
void sum_row(int64_t begin, int64_t end, const Term& term, double (&totals)[K]) {
  while (begin < end) {
    const int64_t stop = end - begin < kChunk ? end : begin + kChunk;
    T lanes[K][kLanes] = {};
    for (; begin + kLanes <= stop; begin += kLanes) {
#pragma GCC ivdep  // a term may write what no other term reads
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        T at[K];
        term(begin + lane, at);
        for (int k = 0; k < K; ++k) lanes[k][lane] += at[k];
      }
    }
    for (int64_t lane = 0; begin < stop; ++begin, ++lane) {
      T at[K];
      term(begin, at);
      for (int k = 0; k < K; ++k) lanes[k][lane] += at[k];
    }
    for (int k = 0; k < K; ++k) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        totals[k] += static_cast<double>(lanes[k][lane]);
      }
    }
  }
}

// Sum of term(x) for begin <= x < end.
template <typename T, typename Term>
double sum_row(int64_t begin, int64_t end, const Term& term) {
  double total[1] = {0};
  sum_row<T>(begin, end, [&](int64_t x, T* out) { out[0] = term(x); }, total);
  return total[0];
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
