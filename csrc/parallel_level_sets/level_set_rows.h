// CPU only: the measure and its gradient to one of the images, row by row, from rows of that image
// as they come.
#pragma once

#include <vector>

#include "../common/image_gradient.h"
#include "../common/mask.h"
#include "../common/ring.h"
#include "parallel_level_sets.h"

namespace diffreg::parallel_level_sets {

// Own: row(y) gives rows of the image that the gradient goes to, each at least two rows after the
// first request for it. `other` is the image beside it.
template <typename T, Variant variant, typename Own>
class LevelSetRows {
 public:
  // Only rows of the strip [first, end) are asked for, and count in the value.
  LevelSetRows(Own& own, const Plane<T>& other, T eps_own, T eps_other, int64_t first, int64_t end)
      : own_(own),
        other_(other),
        eps_own_(eps_own),
        eps_other_(eps_other),
        first_(first),
        end_(end),
        next_(std::max<int64_t>(first - 1, 0)),
        gradients_(4 * other.width),
        slope0_(3, other.width),
        slope1_(3, other.width) {}

  // Sum of the weighted measure over row y.
  double value(int64_t y, const T* weights) {
    read(y);
    double sum = 0;
    with_weights(weights, [&](const auto& weight) {
      sum = sum_row<T>(0, other_.width, [&](int64_t x) {
        T g[2], h[2];
        return weight(x) * counted(voxel(x, g, h).value(), weight(x));
      });
    });
    return sum;
  }

  // Adds factor times the gradient of the weighted sum to row y of the own image; weights(y) gives
  // the row of weights, or null. Returns the sum over the rows of the strip that were evaluated.
  template <typename Weights>
  double add_gradient(int64_t y, T factor, const Weights& weights, T* gradient) {
    const int64_t H = other_.height, W = other_.width;
    double sum = 0;
    for (; next_ <= std::min(y + 1, H - 1); ++next_) {
      const double row = evaluate(next_, factor, weights(next_));
      if (next_ >= first_ && next_ < end_) sum += row;
    }
    for (int64_t from = std::max<int64_t>(y - 1, 0); from <= std::min(y + 1, H - 1); ++from) {
      add_adjoint_axis0(y, from, H, W, slope0_.row(from), gradient);
    }
    add_adjoint_axis1(W, slope1_.row(y), gradient);
    return sum;
  }

 private:
  T* at(int k) { return &gradients_[k * other_.width]; }

  void read(int64_t y) {
    const T* below = own_.row(std::min(y + 1, other_.height - 1));
    gradient_row(own_.row(std::max<int64_t>(y - 1, 0)), own_.row(y), below, other_.width, at(0),
                 at(1));
    other_.gradient_row(y, at(2), at(3));
  }

  Voxel<T, variant> voxel(int64_t x, T* g, T* h) const {
    const int64_t W = other_.width;
    for (int k = 0; k < 2; ++k) {
      g[k] = gradients_[k * W + x];
      h[k] = gradients_[(2 + k) * W + x];
    }
    return Voxel<T, variant>(g, h, eps_own_, eps_other_);
  }

  // The gradient to both derivatives of the own image at row y; the sum over the row.
  double evaluate(int64_t y, T factor, const T* weights) {
    read(y);
    T *to0 = slope0_.row(y), *to1 = slope1_.row(y);
    double sum = 0;
    with_weights(weights, [&](const auto& weight) {
      sum = sum_row<T>(0, other_.width, [&](int64_t x) {
        T g[2], h[2];
        const auto here = voxel(x, g, h);
        const T slope = factor * weight(x);
        to0[x] = slope * counted(here.derivative(g[0], h[0]), weight(x));
        to1[x] = slope * counted(here.derivative(g[1], h[1]), weight(x));
        return weight(x) * counted(here.value(), weight(x));
      });
    });
    return sum;
  }

  Own& own_;
  Plane<T> other_;
  T eps_own_, eps_other_;
  int64_t first_, end_, next_;
  std::vector<T> gradients_;  // of both images at one row, (4, W)
  Ring<T> slope0_, slope1_;
};

}  // namespace diffreg::parallel_level_sets
