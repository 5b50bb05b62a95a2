// CPU only: central differences with a replicated border, g_k[i] = (I[min(i+1,n-1)] -
// I[max(i-1,0)])/2, row by row, and their adjoint.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "central_difference.h"
#include "grid.h"
#include "parallel.h"
#include "ring.h"

namespace diffreg {

// One channel of an image (N, C, *S), of the N C that there are.
template <int D, typename T>
struct Channel {
  const T* data;  // (*S)
  Grid<D> grid;

  Channel(const torch::stable::Tensor& image, const Grid<D>& grid, int64_t channel)
      : data(image.const_data_ptr<T>() + channel * grid.voxels), grid(grid) {}

  const T* row(int64_t row) const { return data + row * grid.width; }
};

// Calls run(n, channel, strip, first row, end row) for the strips of every channel of images
// (N, C, *S), in parallel.
template <int D, typename Run>
void for_channels(int64_t samples, int64_t channels, const Grid<D>& grid, const Run& run) {
  for_each_strip(
      samples, grid.rows, grid.width,
      [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
        for (int64_t c = n * channels; c < (n + 1) * channels; ++c) run(n, c, strip, first, end);
      },
      grid.strip_rows());
}

// A row of an image and the rows beside it along the leading axes, the border's own where there are
// none.
template <int D, typename T>
struct GradientRow {
  const T* here;
  const T *before[D - 1], *after[D - 1];

  // image.row(r) gives row r.
  template <typename Image>
  GradientRow(Image& image, const Grid<D>& grid, int64_t row) : here(image.row(row)) {
    for (int k = 0; k < D - 1; ++k) {
      before[k] = image.row(row + grid.to_before(row, k));
      after[k] = image.row(row + grid.to_after(row, k));
    }
  }

  // The gradient at voxel x, whose neighbours along the row are at x + left and x + right.
  DIFFREG_INLINE void at(int64_t x, int64_t left, int64_t right, T* gradient) const {
    DIFFREG_UNROLL
    for (int k = 0; k < D - 1; ++k) gradient[k] = central_difference(before[k][x], after[k][x]);
    gradient[D - 1] = central_difference(here[x + left], here[x + right]);
  }
};

// Calls run(x, left, right) for the ends of a row, where a neighbour may be the voxel itself.
template <typename Run>
void for_ends(int64_t width, const Run& run) {
  run(0, 0, width > 1 ? 1 : 0);
  if (width > 1) run(width - 1, -1, 0);
}

// The adjoint, row by row: what the gradients p_k to the derivatives at the rows around a row give
// to it. Rows of p are kept for as long as another row needs them.
template <int D, typename T>
class GradientAdjoint {
 public:
  // Rows are asked for in their order, from `first` on.
  GradientAdjoint(const Grid<D>& grid, int64_t first)
      : grid_(grid), next_(std::max<int64_t>(first - grid.stride[0], 0)) {
    for (int k = 0; k < D; ++k) rings_.emplace_back(2 * grid.stride[0] + 1, grid.width);
  }

  // Adds to row `row` of the image. fill(row, p) writes the rows p[k], one after the other.
  template <typename Fill>
  void add_to(int64_t row, T* image_row, const Fill& fill) {
    for (; next_ <= std::min(row + grid_.stride[0], grid_.rows - 1); ++next_) {
      T* p[D];
      for (int k = 0; k < D; ++k) p[k] = rings_[k].row(next_);
      fill(next_, p);
    }
    const int64_t W = grid_.width;
    for (int k = 0; k < D - 1; ++k) {
      const int64_t index = grid_.index(row, k), size = grid_.size[k];
      for (int64_t from = std::max<int64_t>(index - 1, 0); from <= std::min(index + 1, size - 1);
           ++from) {
        const T weight = adjoint_weight<T>(index, from, size);
        if (weight == 0) continue;
        const T* p = rings_[k].row(row + (from - index) * grid_.stride[k]);
        for (int64_t x = 0; x < W; ++x) image_row[x] += weight * p[x];
      }
    }
    add_along(rings_[D - 1].row(row), image_row);
  }

 private:
  void add_along(const T* p, T* image_row) const {
    const int64_t W = grid_.width;
    const T half = T(0.5);
    const auto at_end = [&](int64_t x) {
      T sum = 0;
      for (int64_t from = std::max<int64_t>(x - 1, 0); from <= std::min(x + 1, W - 1); ++from) {
        sum += adjoint_weight<T>(x, from, W) * p[from];
      }
      image_row[x] += sum;
    };
    at_end(0);
    for (int64_t x = 1; x + 1 < W; ++x) image_row[x] += half * p[x - 1] - half * p[x + 1];
    if (W > 1) at_end(W - 1);
  }

  Grid<D> grid_;
  int64_t next_;
  std::vector<Ring<T>> rings_;
};

}  // namespace diffreg
