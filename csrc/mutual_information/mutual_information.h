// Parzen windows of two images, cubic B-splines for W and boxes for R: what a voxel adds to their
// joint histogram, and which slope of it moves with the voxel.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace diffreg::mutual_information {

constexpr int32_t kPadding = 2;  // bins at each end, so that a cubic window stays inside
constexpr int32_t kTaps = 4;     // bins under a cubic window
constexpr int64_t kFewestBins = 2 * kPadding + 1, kMostBins = 1024;
constexpr int64_t kRanges = 4;  // low and extent of the warped, low and extent of the fixed image

// The intensities that the bins of an image cover.
template <typename T>
struct Range {
  T low, extent;  // extent > 0

  // From the smallest and the largest intensity that count; low > high where none does.
  DIFFREG_HD static Range between(T low, T high) {
    if (low > high) return {0, 1};
    return {low, high > low ? high - low : 1};
  }
};

// The joint histogram of a sample: a row for each box of the fixed image, which needs no bins at
// the ends, a column for each bin of the warped image.
struct Shape {
  int64_t rows, columns;

  explicit Shape(int64_t bins) : rows(bins - 2 * kPadding), columns(bins) {}
  DIFFREG_HD int64_t size() const { return rows * columns; }
};

// What a voxel of no finite intensity makes NaN.
constexpr int64_t kUnknownCell = kPadding - 1;

// Where an intensity lies among the bins' centres: `fraction` past that of bin kPadding + cell.
template <typename T>
struct Place {
  int32_t cell;    // 0 <= cell < cells
  T fraction;      // 0 <= fraction <= 1, which the upper end of the range alone has
  int32_t inside;  // 1 inside the range: beyond it a window does not move
};

template <typename T>
DIFFREG_HD Place<T> place_of(T value, const Range<T>& range, int32_t cells) {
  const T part = (value - range.low) / range.extent;
  const T positive = part > 0 ? part : 0;  // so is what is not a number
  const T within = positive < 1 ? positive : 1;
  // Rounded before the sum on all devices: a box has sharp ends.
  const T position = kPadding + rounded_product(within, static_cast<T>(cells));
  const int32_t floor = static_cast<int32_t>(position) - kPadding;
  const int32_t cell = floor < cells ? floor : cells - 1;
  return {cell, position - static_cast<T>(kPadding + cell), (part >= 0) & (part <= 1)};
}

// The cubic B-spline at the bins from kPadding + cell - 1 on, times the weight.
template <typename T>
DIFFREG_HD void cubic_window(T fraction, T weight, T (&taps)[kTaps]) {
  const T f = fraction, g = 1 - f, sixth = weight * (T(1) / 6);
  taps[0] = sixth * (g * g * g);
  taps[1] = sixth * (4 - 3 * (f * f) * (2 - f));
  taps[2] = sixth * (4 - 3 * (g * g) * (2 - g));
  taps[3] = sixth * (f * f * f);
}

// d/d fraction of sum_k taps[k] values[k], from the steps between neighbouring values: the window's
// taps have one sum wherever it lies, so that it does not see what the values have in common.
template <typename T>
DIFFREG_HD T cubic_slope(T fraction, const T* steps) {
  const T f = fraction, g = 1 - f, half = T(0.5);
  return half * (g * g) * steps[0] + (half + f * g) * steps[1] + half * (f * f) * steps[2];
}

// sum_ab p_ab ln(p_a p_b / p_ab) is that of these over the total; 0 ln 0 = 0. row_share: p_b.
DIFFREG_HD double value_term(double count, double of_column, double row_share) {
  return count == 0 ? 0 : count * std::log(of_column / count * row_share);
}

// The derivative of the value to a probability, ln(p_a / p_ab), but for what its row has in common.
DIFFREG_HD double slope_to(double count, double of_column) {
  return count == 0 ? 0 : std::log(of_column / count);
}

// The gradient to a voxel is its weight times this times the slope of its window.
DIFFREG_HD double slope_factor(double upstream, double total, int64_t rows, double extent) {
  const double per_weight = total == 0 ? 0 : 1 / total;
  return upstream * per_weight * (static_cast<double>(rows) / extent);
}

}  // namespace diffreg::mutual_information
