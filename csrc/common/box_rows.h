// CPU only: sums over a box window cut at the border, row by row, in double: running sums along the
// leading axes; along the row voxel by voxel for a short window, else by doubled steps, whose cost
// grows slowly with the window.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "lanes.h"
#include "options.h"

namespace diffreg {

// Indices first <= i < end.
struct Range {
  int64_t first, end;

  // With so many more on both sides, as far as the axis goes.
  Range widened(int64_t by, int64_t size) const {
    return {std::max<int64_t>(first - by, 0), std::min(end + by, size)};
  }
};

// Running sum along an axis: which terms enter and leave as the window moves on by one.
class RunningWindow {
 public:
  static constexpr int64_t kNothing = -1;

  RunningWindow(int64_t size, int64_t radius) : size_(size), radius_(radius) {}

  void restart() { started_ = false; }

  // Calls change(index that enters, index that leaves), kNothing for one that is not inside, for
  // what turns the sum around index - 1, or nothing after a restart, into that around `index`. Both
  // at once: the sums are read and written once.
  template <typename Change>
  void move_to(int64_t index, const Change& change) {
    const int64_t last = index + radius_, before = index - radius_ - 1;
    const int64_t enters = last < size_ ? last : kNothing;
    int64_t leaves = before >= 0 ? before : kNothing;
    if (!started_) {
      leaves = kNothing;
      for (int64_t i = std::max<int64_t>(before + 1, 0); i < std::min(last, size_); ++i) {
        change(i, kNothing);
      }
    }
    if (enters != kNothing || leaves != kNothing) change(enters, leaves);
    started_ = true;
  }

 private:
  int64_t size_, radius_;
  bool started_ = false;
};

// Box sums of K terms a voxel. In 2-D the window moves along axis 0, in 3-D along axis 0 over a
// range of rows of axis 1, and then along these.
template <int D, int K>
class BoxRows {
 public:
  // `rows`: of axis 1, those whose sums are asked for (in 2-D the only one, 0).
  BoxRows(const int64_t* size, int64_t radius, Range rows)
      : width_(size[D - 1]),
        padded_((width_ + kLanes - 1) / kLanes * kLanes),
        radius_(radius),
        held_(D == 2 ? Range{0, 1} : rows.widened(radius, size[D == 2 ? 0 : 1])),
        outer_(size[0], radius),
        inner_(D == 2 ? 1 : size[1], radius),
        slices_(K * width_ * (held_.end - held_.first)),
        columns_(D == 2 ? 0 : K * width_),
        zeros_(D == 2 ? 0 : K * width_),
        sums_(K * padded_),
        wide_(padded_ + 2 * radius) {}

  // Moves to index `outer` of axis 0, the one after that of the last call.
  // change(enters, leaves, row, sums) adds the terms of a row at index `enters` to sums (K, W) and
  // takes those at `leaves` off, where they are not kNothing.
  template <typename Change>
  void move_to(int64_t outer, const Change& change) {
    outer_.move_to(outer, [&](int64_t enters, int64_t leaves) {
      for (int64_t row = held_.first; row < held_.end; ++row) {
        change(enters, leaves, row, slice(row));
      }
    });
    inner_.restart();
    fresh_ = true;
  }

  // Sums over the windows centred on a row of axis 1, the row after that of the last call.
  void sum_row(int64_t row) {
    const double* columns = slice(held_.first);
    if constexpr (D == 3) {
      if (fresh_) std::fill(columns_.begin(), columns_.end(), 0.0);
      fresh_ = false;
      inner_.move_to(row, [&](int64_t enters, int64_t leaves) {
        const double *in = slice(enters), *out = slice(leaves);
        double* sums = columns_.data();
#pragma GCC ivdep
        for (int64_t k = 0; k < K * width_; ++k) sums[k] += in[k] - out[k];
      });
      columns = columns_.data();
    }
    for (int k = 0; k < K; ++k) sum_along_row(columns + k * width_, &sums_[k * padded_]);
  }

  const double* sum(int k) const { return &sums_[k * padded_]; }

 private:
  double* slice(int64_t row) {
    if (row == RunningWindow::kNothing) return zeros_.data();
    return &slices_[(row - held_.first) * K * width_];
  }

  void sum_along_row(const double* column, double* sum) {
    double* wide = wide_.data();
    std::fill(wide, wide + radius_, 0.0);
    std::copy(column, column + width_, wide + radius_);
    std::fill(wide + radius_ + width_, wide + 2 * radius_ + width_, 0.0);
    if (radius_ > kShort) return sum_doubled(sum);
    dispatch_value<0, 1, 2, 3, kShort>(static_cast<int>(radius_), [&](auto radius) {
      constexpr int kLength = 2 * decltype(radius)::value + 1;
#pragma GCC ivdep
      for (int64_t x = 0; x < padded_; ++x) {  // hot: box
        double total = wide[x];
        DIFFREG_UNROLL
        for (int k = 1; k < kLength; ++k) total += wide[x + k];
        sum[x] = total;
      }
    });
  }

  // A window of any length is the sum of windows of 1, 2, 4, ... voxels (doubling).
  void sum_doubled(double* sum) {
    const int64_t length = 2 * radius_ + 1;
    double* wide = wide_.data();
    std::fill(sum, sum + width_, 0.0);
    int64_t offset = 0;
    for (int64_t step = 1; step <= length; step *= 2) {
      if (length & step) {
        for (int64_t x = 0; x < width_; ++x) sum[x] += wide[x + offset];
        offset += step;
      }
      if (2 * step > length) break;
      const int64_t size = width_ + 2 * radius_ - 2 * step + 1;
#pragma GCC ivdep  // what is read has not been written yet
      for (int64_t x = 0; x < size; ++x) wide[x] += wide[x + step];
    }
  }

  // Up to this radius one pass of as many loads as the window is long is quicker.
  static constexpr int kShort = 4;

  int64_t width_;
  int64_t padded_;  // to whole vectors: no voxel at a row's end is left to scalar code
  int64_t radius_;
  Range held_;  // rows of axis 1 in slices_
  RunningWindow outer_, inner_;
  bool fresh_ = true;  // no row of this slice has been summed
  std::vector<double> slices_, columns_, zeros_, sums_, wide_;
};

}  // namespace diffreg
