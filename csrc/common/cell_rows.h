// CPU only: the cells of a field row by row, and the vertex gradient gathered from two rows of
// them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "determinant.h"

namespace diffreg {

// One sample's displacement (2, H, W).
template <typename T>
struct Field {
  const T* data;
  int64_t height, width;

  const T* row(int component, int64_t y) const { return data + (component * height + y) * width; }

  DIFFREG_INLINE Cell<T> cell(int64_t y, int64_t x) const {
    const T *top0 = row(0, y) + x, *top1 = row(1, y) + x;
    const T u00[] = {top0[0], top1[0]}, u01[] = {top0[1], top1[1]};
    const T u10[] = {top0[width], top1[width]}, u11[] = {top0[width + 1], top1[width + 1]};
    return Cell<T>(u00, u10, u01, u11);
  }
};

// What the cells of one row give to the vertices above and below them. Ends are padded with zeros:
// vertex x collects from the cell on its left, at x, and the one on its right, at x + 1.
template <typename T>
class CellRow {
 public:
  explicit CellRow(int64_t width) : stride_(width + 1), parts_(8 * stride_) {}

  // Cells that do not exist, above the first row of vertices or below the last one.
  void clear() { std::fill(parts_.begin(), parts_.end(), T(0)); }

  // Stores what cell x gives to its four vertices.
  DIFFREG_INLINE void store(int64_t x, const Cell<T>& cell, const T* corner) {
    T at00[2], at10[2], at01[2], at11[2];
    cell.adjoint(corner, at00, at10, at01, at11);
    for (int c = 0; c < 2; ++c) {
      part(0, 1, c)[x + 1] = at00[c];
      part(0, 0, c)[x + 1] = at01[c];
      part(1, 1, c)[x + 1] = at10[c];
      part(1, 0, c)[x + 1] = at11[c];
    }
  }

  // Component c of what the row gives to vertex x of the row above it (side 0) or below (side 1).
  DIFFREG_INLINE T at(int side, int c, int64_t x) const {
    return part(side, 0, c)[x] + part(side, 1, c)[x + 1];
  }

 private:
  DIFFREG_INLINE T* part(int side, int right, int c) {
    return &parts_[((side * 2 + right) * 2 + c) * stride_];
  }
  DIFFREG_INLINE const T* part(int side, int right, int c) const {
    return &parts_[((side * 2 + right) * 2 + c) * stride_];
  }

  int64_t stride_;
  std::vector<T> parts_;
};

// Gradient of a sum over cells to the vertex rows [first, end). Each vertex adds the cells above it
// (left, right), then those below (left, right), whichever strip it is in.
// to_corners(y, x, cell, corner) writes the gradient to the four determinants of cell (y, x).
template <typename T, typename ToCorners>
void add_cell_gradients(const Field<T>& field, int64_t first, int64_t end,
                        T* gradient,  // (2, H, W)
                        const ToCorners& to_corners) {
  if (field.width < 2 || field.height < 2) return;
  CellRow<T> cells(field.width);
  for (int64_t y = first > 0 ? first - 1 : 0; y < end && y < field.height - 1; ++y) {
#pragma GCC ivdep  // no cell depends on another
    for (int64_t x = 0; x < field.width - 1; ++x) {
      const Cell<T> cell = field.cell(y, x);
      T corner[4];
      to_corners(y, x, cell, corner);
      cells.store(x, cell, corner);
    }
    for (int side = 0; side < 2; ++side) {
      if (y + side < first || y + side >= end) continue;
      for (int c = 0; c < 2; ++c) {
        T* row = gradient + (c * field.height + y + side) * field.width;
        for (int64_t x = 0; x < field.width; ++x) row[x] += cells.at(side, c, x);
      }
    }
  }
}

}  // namespace diffreg
