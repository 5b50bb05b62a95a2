// Sums in a fixed order: lanes within a chunk of a row, then chunks, then strips, then nothing
// else.
#pragma once

#include <cstdint>
#include <vector>

#include "lanes.h"

namespace diffreg {

constexpr int64_t kChunk = 16 * kLanes;  // terms added in T before they go to double

// Adds the lanes of K sums to their totals, one after the other, the sums side by side.
template <typename T, int K>
DIFFREG_INLINE void add_lanes(const T (&lanes)[K][kLanes], double (&totals)[K]) {
  double total[K];
  for (int k = 0; k < K; ++k) total[k] = totals[k];
#pragma GCC unroll 1
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    DIFFREG_UNROLL
    for (int k = 0; k < K; ++k) total[k] += static_cast<double>(lanes[k][lane]);
  }
  for (int k = 0; k < K; ++k) totals[k] = total[k];
}

// Adds K sums for begin <= x < end to `totals`: term(x, out) writes the K terms. Lanes are
// explicit, so that vectorising keeps the order; several sums at once hide each other's latency.
// As in for_lanes, term(x) may come twice, and is inlined: of the last piece those count that were
// not summed yet.
template <typename T, int K, typename Term>
DIFFREG_INLINE void sum_row(int64_t begin, int64_t end, const Term& term, double (&totals)[K]) {
  const int64_t first = begin;
  while (begin < end) {
    const int64_t stop = end - begin < kChunk ? end : begin + kChunk;
    T lanes[K][kLanes] = {};
    for (; begin + kLanes <= stop; begin += kLanes) {
#pragma GCC unroll 1
#pragma GCC ivdep                                      // a term may write what no other term reads
      for (int64_t lane = 0; lane < kLanes; ++lane) {  // hot: sums
        T at[K];
        term(begin + lane, at);
        for (int k = 0; k < K; ++k) lanes[k][lane] += at[k];
      }
    }
    if (begin < stop && stop - kLanes >= first) {
      T piece[K][2 * kLanes] = {};  // what was summed, what was not, zeros
      const int64_t last = stop - kLanes, summed = begin - last;
#pragma GCC unroll 1
#pragma GCC ivdep
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        T at[K];
        term(last + lane, at);
        for (int k = 0; k < K; ++k) piece[k][lane] = at[k];
      }
      for (int k = 0; k < K; ++k) {
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[k][lane] += piece[k][summed + lane];
      }
      begin = stop;
    }
    for (int64_t lane = 0; begin < stop; ++begin, ++lane) {
      T at[K];
      term(begin, at);
      for (int k = 0; k < K; ++k) lanes[k][lane] += at[k];
      asm volatile("");  // as in for_lanes
    }
    add_lanes(lanes, totals);
  }
}

// Sum of term(x) for begin <= x < end.
template <typename T, typename Term>
DIFFREG_INLINE double sum_row(int64_t begin, int64_t end, const Term& term) {
  double total[1] = {0};
  sum_row<T>(begin, end, [&](int64_t x, T* out) DIFFREG_INLINE_LAMBDA { out[0] = term(x); }, total);
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
