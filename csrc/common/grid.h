// CPU only: a grid as rows along its last axis, in raster order; its other axes are "leading".
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

namespace diffreg {

template <int D>
struct Grid {
  int64_t size[D];
  int64_t stride[D];  // rows from a row to the next along a leading axis; 0 along the last
  int64_t rows = 1, width, voxels;

  // Of an image or a field (N, C, *S).
  explicit Grid(const torch::stable::Tensor& tensor) {
    for (int k = 0; k < D; ++k) size[k] = tensor.size(2 + k);
    width = size[D - 1];
    stride[D - 1] = 0;
    for (int k = D - 2; k >= 0; --k) {
      stride[k] = rows;
      rows *= size[k];
    }
    voxels = rows * width;
  }

  // Place of a row along a leading axis.
  int64_t index(int64_t row, int axis) const { return row / stride[axis] % size[axis]; }

  // Rows to the neighbour before and after along a leading axis; 0 where there is none.
  int64_t to_before(int64_t row, int axis) const {
    return index(row, axis) > 0 ? -stride[axis] : 0;
  }
  int64_t to_after(int64_t row, int axis) const {
    return index(row, axis) + 1 < size[axis] ? stride[axis] : 0;
  }

  // Whether cells start at a row: it is the last one along no leading axis.
  bool starts_cells(int64_t row) const {
    for (int k = 0; k < D - 1; ++k) {
      if (to_after(row, k) == 0) return false;
    }
    return width > 1;
  }
  // Rows from a row to the last one of the cells that start there.
  int64_t cell_reach() const {
    int64_t reach = 0;
    for (int k = 0; k < D - 1; ++k) reach += stride[k];
    return reach;
  }

  // Rows of a strip of a stencil operator: in 3-D whole planes, of which a strip shares two with
  // its neighbours; never 0, as planes without rows would have it.
  int64_t strip_rows() const { return D == 2 ? 16 : 8 * std::max<int64_t>(stride[0], 1); }
};

}  // namespace diffreg
