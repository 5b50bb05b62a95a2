// CPU only: sums over a box window cut at the border, row by row, at the same cost for any window:
// running sums down the columns, then doubled steps along the row, in double.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace diffreg {

// Voxels of the window around index i that lie inside an axis.
inline int64_t window_count(int64_t i, int64_t radius, int64_t size) {
  return std::min(i + radius, size - 1) - std::max<int64_t>(i - radius, 0) + 1;
}

// Box sums of K terms a voxel.
template <int K>
class BoxRows {
 public:
  BoxRows(int64_t height, int64_t width, int64_t radius)
      : height_(height),
        width_(width),
        radius_(radius),
        columns_(K * width),
        sums_(K * width),
        wide_(width + 2 * radius) {}

  // Sums over the windows centred on row y, the row after that of the last call.
  // add(row, sign, columns) adds sign times the terms of a row to columns (K, W).
  template <typename Add>
  void move_to(int64_t y, const Add& add) {
    const int64_t enters = y + radius_, leaves = y - radius_ - 1;
    if (!started_) {
      for (int64_t row = std::max<int64_t>(leaves + 1, 0); row < std::min(enters, height_); ++row) {
        add(row, 1.0, columns_.data());
      }
    } else if (leaves >= 0) {
      add(leaves, -1.0, columns_.data());
    }
    if (enters < height_) add(enters, 1.0, columns_.data());
    started_ = true;
    for (int k = 0; k < K; ++k) sum_along_row(&columns_[k * width_], &sums_[k * width_]);
  }

  const double* sum(int k) const { return &sums_[k * width_]; }

 private:
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

  int64_t height_, width_, radius_;
  bool started_ = false;
  std::vector<double> columns_, sums_, wide_;
};

}  // namespace diffreg
