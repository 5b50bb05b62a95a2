// CPU only: the joint histogram of a sample, counted and evaluated in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../common/reduce.h"
#include "mutual_information.h"

namespace diffreg::mutual_information {

// A histogram that is being counted. Every place between two bins has sums of its own for the four
// taps of its windows: overlapping windows would wait, for a vector of four cannot be read before
// the parts of it that others have just written have come to memory.
class Cells {
 public:
  explicit Cells(const Shape& shape)
      : shape_(shape), cells_(shape.rows), sums_(shape.rows * shape.rows * kTaps) {}

  template <typename T, typename Weight>
  void add(const T* warped, const T* fixed, int64_t count, const Weight& weight, Range<T> of_warped,
           Range<T> of_fixed) {
    const int32_t cells = static_cast<int32_t>(cells_);
    int32_t at[kChunk], unknown = 0;
    T taps[kChunk][kTaps];
    for (int64_t x = 0; x < count; ++x) {
      const T m = weight(x), w = counted(warped[x], m), r = counted(fixed[x], m);
      const Place<T> place = place_of(w, of_warped, cells);
      at[x] = place_of(r, of_fixed, cells).cell * cells + place.cell;
      cubic_window(place.fraction, m, taps[x]);
      unknown |= (w - w != 0) | (r - r != 0);
    }
    for (int64_t x = 0; x < count; ++x) {
      double* sums = &sums_[kTaps * at[x]];
#pragma GCC unroll 1  // into one vector rather than into four numbers
#pragma GCC ivdep
      for (int32_t k = 0; k < kTaps; ++k) sums[k] += taps[x][k];
    }
    if (unknown) sums_[0] = std::numeric_limits<double>::quiet_NaN();
  }

  void add_to(double* histogram) const {
    const double* sums = sums_.data();
    for (int64_t row = 0; row < shape_.rows; ++row, histogram += shape_.columns) {
      for (int64_t cell = 0; cell < cells_; ++cell, sums += kTaps) {
        for (int32_t k = 0; k < kTaps; ++k) histogram[kPadding - 1 + cell + k] += sums[k];
      }
    }
  }

 private:
  Shape shape_;
  int64_t cells_;
  std::vector<double> sums_;
};

// A joint histogram and its sums.
class Joint {
 public:
  Joint(const Shape& shape, const double* counts)
      : shape_(shape), counts_(counts), of_rows_(shape.rows), of_columns_(shape.columns) {
    for (int64_t row = 0; row < shape_.rows; ++row) {
      for (int64_t column = 0; column < shape_.columns; ++column) {
        of_rows_[row] += at(row, column);
        of_columns_[column] += at(row, column);
      }
      total_ += of_rows_[row];
    }
  }

  double value() const {
    double sum = 0;
    for (int64_t row = 0; row < shape_.rows; ++row) {
      const double share = of_rows_[row] / total_;
      for (int64_t column = 0; column < shape_.columns; ++column) {
        sum += value_term(at(row, column), of_columns_[column], share);
      }
    }
    return sum == 0 ? 0 : sum / total_;
  }

  // Steps of the slopes along a row: (rows, columns), the last column unused.
  template <typename T>
  std::vector<T> steps() const {
    std::vector<T> steps(shape_.size());
    const auto slope = [&](int64_t row, int64_t column) {
      return slope_to(at(row, column), of_columns_[column]);
    };
    for (int64_t row = 0; row < shape_.rows; ++row) {
      double before = slope(row, 0);
      for (int64_t column = 1; column < shape_.columns; ++column) {
        const double after = slope(row, column);
        steps[row * shape_.columns + column - 1] = static_cast<T>(after - before);
        before = after;
      }
    }
    return steps;
  }

  double total() const { return total_; }  // the sum of the weights

 private:
  double at(int64_t row, int64_t column) const { return counts_[row * shape_.columns + column]; }

  Shape shape_;
  const double* counts_;  // (rows, columns)
  std::vector<double> of_rows_, of_columns_;
  double total_ = 0;
};

}  // namespace diffreg::mutual_information
