// CPU only: the measure and its gradient to one of the images, row by row, from rows of that image
// as they come.
#pragma once

#include <vector>

#include "../common/box_rows.h"
#include "../common/image_gradient.h"
#include "../common/mask.h"
#include "../common/ring.h"
#include "local_correlation.h"

namespace diffreg::local_correlation {

// A window reaches no further than the image, however large it was asked for.
inline int64_t radius_of(int64_t window, int64_t height, int64_t width) {
  return std::min(window / 2, std::max(height, width));
}

// Rows of a strip: enough that those it shares with the next ones are few.
inline int64_t strip_rows(int64_t radius) { return std::max<int64_t>(16 * radius, 32); }

// Own: row(y) gives rows of the image that the gradient goes to, each at least 2 radius + 2 rows
// after the first request for it. `other` is the image beside it.
template <typename T, typename Own>
class WindowRows {
 public:
  // Only rows of the strip [first, end) are asked for, and count in the value.
  WindowRows(Own& own, const Plane<T>& other, int64_t radius, int64_t first, int64_t end)
      : own_(own),
        other_(other),
        radius_(radius),
        first_(first),
        end_(end),
        next_(std::max<int64_t>(first - radius, 0)),
        per_column_(other.width),
        moments_(other.height, other.width, radius),
        parts_(other.height, other.width, radius),
        terms_(std::min(2 * radius + 2, other.height), kParts * other.width) {
    for (int64_t x = 0; x < other.width; ++x) {
      per_column_[x] = 1 / double(window_count(x, radius, other.width));
    }
  }

  // Sum of the weighted measure over row y.
  double value(int64_t y, const T* weights) {
    double sum = 0;
    for_windows(
        y, weights,
        [&](int64_t, double weight, const Window& here) { return weight * here.value(); }, sum);
    return sum;
  }

  // Adds factor times the gradient of the weighted sum to row y of the own image; weights(y) gives
  // the row of weights, or null. Returns the sum over the rows of the strip that were evaluated.
  template <typename Weights>
  double add_gradient(int64_t y, double factor, const Weights& weights, T* gradient) {
    const int64_t W = other_.width;
    double sum = 0;
    for (; next_ <= std::min(y + radius_, other_.height - 1); ++next_) {
      const double row = evaluate(next_, factor, weights(next_));
      if (next_ >= first_ && next_ < end_) sum += row;
    }
    parts_.move_to(y, [&](int64_t from, double sign, double* columns) {
      const double* terms = terms_.row(from);
      for (int64_t k = 0; k < kParts * W; ++k) columns[k] += sign * terms[k];
    });
    const T *own = own_.row(y), *other = other_.row(y);
    const double *cross = parts_.sum(0), *by_own = parts_.sum(1), *rest = parts_.sum(2);
#pragma GCC ivdep
    for (int64_t x = 0; x < W; ++x) {
      gradient[x] += static_cast<T>(
          gradient_at(cross[x], by_own[x], rest[x], double(own[x]), double(other[x])));
    }
    return sum;
  }

 private:
  static constexpr int kParts = 3;

  // Moves to the windows centred on row y; sum += term(x, weight, window) over the row.
  template <typename Term>
  void for_windows(int64_t y, const T* weights, const Term& term, double& sum) {
    const int64_t W = other_.width;
    moments_.move_to(y, [&](int64_t from, double sign, double* columns) {
      const T *own = own_.row(from), *other = other_.row(from);
#pragma GCC ivdep
      for (int64_t x = 0; x < W; ++x) {
        double terms[kTerms];
        image_terms(own[x], other[x], terms);
        for (int k = 0; k < kTerms; ++k) columns[k * W + x] += sign * terms[k];
      }
    });
    const double per_row = 1 / double(window_count(y, radius_, other_.height));
    with_weights(weights, [&](const auto& weight) {
      sum += sum_row<double>(0, W, [&](int64_t x) {
        const double sums[] = {moments_.sum(0)[x], moments_.sum(1)[x], moments_.sum(2)[x],
                               moments_.sum(3)[x], moments_.sum(4)[x]};
        return term(x, double(weight(x)), Window(sums, per_row * per_column_[x]));
      });
    });
  }

  // What the windows centred on row y give to each of their voxels; the sum of the measure.
  double evaluate(int64_t y, double factor, const T* weights) {
    const int64_t W = other_.width;
    double *cross = terms_.row(y), *by_own = cross + W, *rest = by_own + W;
    double sum = 0;
    for_windows(
        y, weights,
        [&](int64_t x, double weight, const Window& here) {
          here.gradient_terms(factor * weight, cross[x], by_own[x], rest[x]);
          return weight * here.value();
        },
        sum);
    return sum;
  }

  Own& own_;
  Plane<T> other_;
  int64_t radius_, first_, end_, next_;
  std::vector<double> per_column_;  // 1 / columns of the window around x
  BoxRows<kTerms> moments_;
  BoxRows<kParts> parts_;
  Ring<double> terms_;  // of the windows centred on a row, (3, W)
};

}  // namespace diffreg::local_correlation
