// CPU only: the similarity measures as a sweep over the rows of a warped image that is never
// stored.
#pragma once

#include <functional>
#include <memory>

#include "../correlation/moment_rows.h"
#include "../local_correlation/window_rows.h"
#include "../parallel_level_sets/level_set_rows.h"
#include "../warp/warp_rows.h"
#include "registration_objective.h"

namespace diffreg::registration_objective {

using warp::WarpedRows;

template <typename T>
using WeightRows = std::function<const T*(int64_t)>;  // weights of row y, null for 1 everywhere

// One measure of one channel, on the rows of a strip. Rows come in their order.
template <typename T>
class MeasureRows {
 public:
  virtual ~MeasureRows() = default;
  // The weighted sum over row y.
  virtual double value(int64_t y) = 0;
  // Adds factor times the sum's gradient to row y of the warped image; the sum over rows that were
  // evaluated for it, each of which counts once.
  virtual double add_gradient(int64_t y, double factor, T* gradient) = 0;
};

template <typename T>
class SquareRows : public MeasureRows<T> {
 public:
  SquareRows(WarpedRows<T>& warped, const Plane<T>& fixed, WeightRows<T> weights)
      : warped_(warped), fixed_(fixed), weights_(std::move(weights)) {}

  double value(int64_t y) override {
    const T *w = warped_.row(y), *r = fixed_.row(y);
    double sum = 0;
    with_weights(weights_(y), [&](const auto& weight) {
      sum = sum_row<T>(0, fixed_.width, [&](int64_t x) {
        return weight(x) * counted(squared_difference(w[x], r[x]), weight(x));
      });
    });
    return sum;
  }

  double add_gradient(int64_t y, double factor, T* gradient) override {
    const T *w = warped_.row(y), *r = fixed_.row(y);
    const T scale = static_cast<T>(factor);
    double sum = 0;
    with_weights(weights_(y), [&](const auto& weight) {
      sum = sum_row<T>(0, fixed_.width, [&](int64_t x) {
        gradient[x] += scale * weight(x) * counted(squared_difference_slope(w[x], r[x]), weight(x));
        return weight(x) * counted(squared_difference(w[x], r[x]), weight(x));
      });
    });
    return sum;
  }

 private:
  WarpedRows<T>& warped_;
  Plane<T> fixed_;
  WeightRows<T> weights_;
};

// Its value comes from the moments of the whole image, which are known beforehand.
template <typename T>
class CorrelationRows : public MeasureRows<T> {
 public:
  CorrelationRows(WarpedRows<T>& warped, const Plane<T>& fixed, WeightRows<T> weights,
                  const correlation::Moments& moments)
      : warped_(warped), fixed_(fixed), weights_(std::move(weights)), moments_(moments) {}

  double value(int64_t) override { return 0; }

  double add_gradient(int64_t y, double factor, T* gradient) override {
    const T *w = warped_.row(y), *r = fixed_.row(y);
    const double by_own = factor * moments_.slope_by_own(moments_.warped_warped);
    const double by_other = factor * moments_.slope_by_other();
    const double mean_w = moments_.mean_warped, mean_r = moments_.mean_fixed;
    with_weights(weights_(y), [&](const auto& weight) {
#pragma GCC ivdep
      for (int64_t x = 0; x < fixed_.width; ++x) {
        const double pull = by_own * (w[x] - mean_w) - by_other * (r[x] - mean_r);
        gradient[x] += static_cast<T>(weight(x) * pull);
      }
    });
    return 0;
  }

 private:
  WarpedRows<T>& warped_;
  Plane<T> fixed_;
  WeightRows<T> weights_;
  correlation::Moments moments_;
};

// Rows: LevelSetRows or WindowRows, which add a gradient of their own accord.
template <typename T, typename Rows>
class SweptRows : public MeasureRows<T> {
 public:
  template <typename... Arguments>
  SweptRows(WeightRows<T> weights, Arguments&&... arguments)
      : weights_(std::move(weights)), rows_(std::forward<Arguments>(arguments)...) {}

  double value(int64_t y) override { return rows_.value(y, weights_(y)); }
  double add_gradient(int64_t y, double factor, T* gradient) override {
    return rows_.add_gradient(y, factor, weights_, gradient);
  }

 private:
  WeightRows<T> weights_;
  Rows rows_;
};

}  // namespace diffreg::registration_objective
