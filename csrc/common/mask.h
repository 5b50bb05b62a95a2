// CPU only: the optional mask (N, 1, *S) that weights a mean over voxels; without one, weight 1.
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
      : channels_(image.size(1)), rows_(rows_of(image)), width_(width_of(image)) {
    const int64_t N = image.size(0);
    totals_.assign(N, double(rows_ * width_));
    if (!mask) return;
    check_shape("mask", *mask, mask_shape(image));
    check_dtype("mask", *mask, image.scalar_type());
    contiguous_ = torch::stable::contiguous(*mask);
    data_ = contiguous_->template const_data_ptr<T>();
    StripSums<1> sums(N, strip_count(rows_));
    for_each_strip(N, rows_, width_, [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
      for (int64_t y = first; y < end; ++y) {
        const T* weight = row(n, y);
        *sums.at(n, strip) +=
            sum_row<T>(0, width_, [&](int64_t x) DIFFREG_INLINE_LAMBDA { return weight[x]; });
      }
    });
    for (int64_t n = 0; n < N; ++n) totals_[n] = sums.total(n, 0);
  }

  // Weights of row y, in raster order; null for 1 everywhere.
  const T* row(int64_t n, int64_t y) const {
    return data_ ? data_ + (n * rows_ + y) * width_ : nullptr;
  }

  // What the measures read of an image (N, C, *S), contiguous: 0 for what is hidden. The image
  // itself where all of it is finite.
  Tensor read(const Tensor& image) const {
    if (!data_ || is_finite(image)) return image;
    Tensor copy = torch::stable::new_empty(image, image.sizes());
    T* out = copy.template mutable_data_ptr<T>();
    for_rows(image, [&](int64_t n, int64_t, int64_t y, int64_t at, const T* values) {
      const T* weight = row(n, y);
      for (int64_t x = 0; x < width_; ++x) out[at + x] = visible(values[x], weight[x]);
    });
    return copy;
  }

  // Takes the hidden voxels out of the gradient (N, C, *S) of an image that was `read`.
  void leave_out_hidden(const Tensor& image, const Tensor& read, Tensor& gradient) const {
    if (read.const_data_ptr() == image.const_data_ptr()) return;
    T* out = gradient.template mutable_data_ptr<T>();
    for_rows(image, [&](int64_t n, int64_t, int64_t y, int64_t at, const T* values) {
      const T* weight = row(n, y);
      for (int64_t x = 0; x < width_; ++x) {
        if (hidden(values[x], weight[x])) out[at + x] = 0;
      }
    });
  }

  // The mean over a sample's voxels and channels that is from their weighted sum; of a factor to
  // the mean, what is that to each of them. 0 where there is nothing to average.
  double mean(int64_t n, double sum) const {
    const double per_voxel = totals_[n] == 0 ? 0 : 1 / totals_[n];
    return sum * per_voxel / channels_;
  }

 private:
  // Calls run(n, strip, y, first voxel, row) for the rows of every channel.
  template <typename Run>
  void for_rows(const Tensor& image, const Run& run) const {
    const int64_t N = image.size(0), C = image.size(1);
    const T* data = image.template const_data_ptr<T>();
    for_each_strip(N, rows_, width_, [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
      for (int64_t c = n * C; c < (n + 1) * C; ++c) {
        for (int64_t y = first; y < end; ++y) {
          const int64_t at = (c * rows_ + y) * width_;
          run(n, strip, y, at, data + at);
        }
      }
    });
  }

  bool is_finite(const Tensor& image) const {
    StripSums<1> sums(image.size(0), strip_count(rows_));
    for_rows(image, [&](int64_t n, int64_t strip, int64_t, int64_t, const T* values) {
      // 0, or NaN.
      *sums.at(n, strip) += sum_row<T>(
          0, width_, [&](int64_t x) DIFFREG_INLINE_LAMBDA { return values[x] - values[x]; });
    });
    for (int64_t n = 0; n < image.size(0); ++n) {
      if (sums.total(n, 0) != 0) return false;
    }
    return true;
  }

  int64_t channels_, rows_, width_;
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
