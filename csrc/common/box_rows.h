// CPU only: sums over a box window cut at the border, row by row, at the same cost for any window:
// running sums along the leading axes, then doubled steps along the row, in double.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace diffreg {

// Voxels of the window around index i that lie inside an axis.
inline int64_t window_count(int64_t i, int64_t radius, int64_t size) {
  return std::min(i + radius, size - 1) - std::max<int64_t>(i - radius, 0) + 1;
}

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
  RunningWindow(int64_t size, int64_t radius) : size_(size), radius_(radius) {}

  void restart() { started_ = false; }

  // Calls add(index, sign) for what turns the sum around index - 1, or nothing after a restart,
  // into that around `index`.
  template <typename Add>
  void move_to(int64_t index, const Add& add) {
    const int64_t enters = index + radius_, leaves = index - radius_ - 1;
    if (!started_) {
      for (int64_t i = std::max<int64_t>(leaves + 1, 0); i < std::min(enters, size_); ++i) {
        add(i, 1.0);
      }
    } else if (leaves >= 0) {
      add(leaves, -1.0);
    }
    if (enters < size_) add(enters, 1.0);
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
        radius_(radius),
        held_(D == 2 ? Range{0, 1} : rows.widened(radius, size[D == 2 ? 0 : 1])),
        outer_(size[0], radius),
        inner_(D == 2 ? 1 : size[1], radius),
        slices_(K * width_ * (held_.end - held_.first)),
        columns_(D == 2 ? 0 : K * width_),
        sums_(K * width_),
        wide_(width_ + 2 * radius) {}

  // Moves to index `outer` of axis 0, the one after that of the last call.
  // add(outer, row, sign, sums) adds sign times the terms of a row to sums (K, W).
  template <typename Add>
  void move_to(int64_t outer, const Add& add) {
    outer_.move_to(outer, [&](int64_t index, double sign) {
      for (int64_t row = held_.first; row < held_.end; ++row) add(index, row, sign, slice(row));
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
      inner_.move_to(row, [&](int64_t index, double sign) {
        const double* from = slice(index);
        for (int64_t k = 0; k < K * width_; ++k) columns_[k] += sign * from[k];
      });
      columns = columns_.data();
    }
    for (int k = 0; k < K; ++k) sum_along_row(columns + k * width_, &sums_[k * width_]);
  }

  const double* sum(int k) const { return &sums_[k * width_]; }

 private:
  double* slice(int64_t row) { return &slices_[(row - held_.first) * K * width_]; }

  // A window of any length is the sum of windows of 1, 2, 4, ... voxels (doubling).
  void sum_along_row(const double* column, double* sum) {
    const int64_t length = 2 * radius_ + 1;
    double* wide = wide_.data();
    std::fill(wide, wide + radius_, 0.0);
    std::copy(column, column + width_, wide + radius_);
    std::fill(wide + radius_ + width_, wide + 2 * radius_ + width_, 0.0);
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

  int64_t width_, radius_;
  Range held_;  // rows of axis 1 in slices_
  RunningWindow outer_, inner_;
  bool fresh_ = true;  // no row of this slice has been summed
  std::vector<double> slices_, columns_, sums_, wide_;
};

}  // namespace diffreg
