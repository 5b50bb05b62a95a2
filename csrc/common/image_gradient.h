// CPU only: central differences with a replicated border, g_k[i] = (I[min(i+1,n-1)] -
// I[max(i-1,0)])/2, row by row, and their adjoint.
#pragma once

#include <algorithm>
#include <cstdint>

#include "central_difference.h"

namespace diffreg {

// Gradient along both axes of the row `here`, (W) each.
template <typename T>
void gradient_row(const T* above, const T* here, const T* below, int64_t width, T* g0, T* g1) {
  for (int64_t x = 0; x < width; ++x) g0[x] = central_difference(above[x], below[x]);
  for (int64_t x = 1; x + 1 < width; ++x) g1[x] = central_difference(here[x - 1], here[x + 1]);
  g1[0] = central_difference(here[0], here[std::min<int64_t>(1, width - 1)]);
  g1[width - 1] = central_difference(here[std::max<int64_t>(width - 2, 0)], here[width - 1]);
}

// One channel of an image, (H, W).
template <typename T>
struct Plane {
  const T* data;
  int64_t height, width;

  const T* row(int64_t y) const { return data + y * width; }

  void gradient_row(int64_t y, T* g0, T* g1) const {
    diffreg::gradient_row(row(std::max<int64_t>(y - 1, 0)), row(y),
                          row(std::min(y + 1, height - 1)), width, g0, g1);
  }
};

// The adjoint along axis 0: what the row `from` of p0 adds to row y of the image, for from = y-1,
// y, y+1 in this order.
template <typename T>
void add_adjoint_axis0(int64_t y, int64_t from, int64_t height, int64_t width, const T* p0,
                       T* image_row) {
  const T weight = adjoint_weight<T>(y, from, height);
  if (weight == 0) return;
  for (int64_t x = 0; x < width; ++x) image_row[x] += weight * p0[x];
}

// The same along axis 1, within the row.
template <typename T>
void add_adjoint_axis1(int64_t width, const T* p1, T* image_row) {
  const T half = T(0.5);
  for (int64_t x = 1; x < width; ++x) image_row[x] += half * p1[x - 1];
  for (int64_t x = 0; x + 1 < width; ++x) image_row[x] -= half * p1[x + 1];
  image_row[width - 1] += half * p1[width - 1];
  image_row[0] -= half * p1[0];
}

// Image gradient by the adjoint for the rows [first, end): p(y, p0, p1) fills the gradient to both
// derivatives at row y. p is evaluated once a row, and again for one row beside each strip.
template <typename T, typename FillRow>
void add_image_gradient(int64_t height, int64_t width, int64_t first, int64_t end, T* p0,
                        T* p1,        // scratch, (W) each
                        T* gradient,  // (H, W)
                        const FillRow& fill) {
  for (int64_t from = std::max<int64_t>(first - 1, 0); from < std::min(end + 1, height); ++from) {
    fill(from, p0, p1);
    for (int64_t y = std::max(from - 1, first); y < std::min(from + 2, end); ++y) {
      add_adjoint_axis0(y, from, height, width, p0, gradient + y * width);
    }
    if (from >= first && from < end) add_adjoint_axis1(width, p1, gradient + from * width);
  }
}

}  // namespace diffreg
