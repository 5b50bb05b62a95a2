// CPU only: the optional mask (N, 1, H, W) that weights a mean over voxels; without one, weight 1.
#pragma once

#include <optional>

#include "check.h"
#include "parallel.h"
#include "reduce.h"

namespace diffreg {

template <typename T>
class Mask {
 public:
  // Keeps the mask's memory, and sums its weights a sample.
  Mask(const std::optional<Tensor>& mask, const Tensor& image)
      : height_(image.size(2)), width_(image.size(3)) {
    const int64_t N = image.size(0);
    totals_.assign(N, double(height_ * width_));
    if (!mask) return;
    check_shape("mask", *mask, {N, 1, height_, width_});
    check_dtype("mask", *mask, image.scalar_type());
    contiguous_ = torch::stable::contiguous(*mask);
    data_ = contiguous_->template const_data_ptr<T>();
    StripSums<1> sums(N, strip_count(height_));
    for_each_strip(N, height_, width_, [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
      for (int64_t y = first; y < end; ++y) {
        const T* weight = row(n, y);
        *sums.at(n, strip) += sum_row<T>(0, width_, [&](int64_t x) { return weight[x]; });
      }
    });
    for (int64_t n = 0; n < N; ++n) totals_[n] = sums.total(n, 0);
  }

  // Weights of row y, null for 1 everywhere.
  const T* row(int64_t n, int64_t y) const {
    return data_ ? data_ + (n * height_ + y) * width_ : nullptr;
  }

  // 1 / (sum of the weights), 0 where there is nothing to average.
  double per_voxel(int64_t n) const { return totals_[n] == 0 ? 0 : 1 / totals_[n]; }

 private:
  int64_t height_, width_;
  const T* data_ = nullptr;
  std::optional<Tensor> contiguous_;
  std::vector<double> totals_;
};

// Calls run(weight), where weight(x) is that of a voxel of the row: a loop in it has no choice to
// make, and is vectorised.
template <typename T, typename Run>
void with_weights(const T* row, const Run& run) {
  if (row) return run([row](int64_t x) { return row[x]; });
  run([](int64_t) { return T(1); });
}

}  // namespace diffreg
