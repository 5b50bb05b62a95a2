// CPU only: the cells of a field row by row, and the vertex gradient gathered from two rows of
// them.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "determinant.h"

namespace diffreg {

// One sample's displacement (2, H, W).
template <typename T>
struct Field {
  const T* data;
  int64_t height, width;

  const T* row(int component, int64_t y) const { return data + (component * height + y) * width; }

  Cell<T> cell(int64_t y, int64_t x) const {
    const T *top0 = row(0, y) + x, *top1 = row(1, y) + x;
    const T u00[] = {top0[0], top1[0]}, u01[] = {top0[1], top1[1]};
    const T u10[] = {top0[width], top1[width]}, u11[] = {top0[width + 1], top1[width + 1]};
    return Cell<T>(u00, u10, u01, u11);
  }
};

// Gradient of a sum over cells to the vertex rows [first, end). Each vertex adds the cells above it
// (left, right), then those below (left, right), whichever strip it is in.
// to_corners(y, x, cell, corner) writes the gradient to the four determinants of cell (y, x).
template <typename T, typename ToCorners>
void add_cell_gradients(const Field<T>& field, int64_t first, int64_t end,
                        T* gradient,  // (2, H, W)
                        const ToCorners& to_corners) {
  const int64_t cells = field.width - 1;
  if (cells < 1 || field.height < 2) return;
  // What the current row of cells gives to the vertices above (g00, g01) and below it (g10, g11).
  std::vector<T> above(4 * cells), below(4 * cells);
  const auto evaluate = [&](int64_t y) {
    T *g00 = &above[0], *g01 = &above[2 * cells], *g10 = &below[0], *g11 = &below[2 * cells];
#pragma GCC ivdep  // no cell depends on another
    for (int64_t x = 0; x < cells; ++x) {
      const Cell<T> cell = field.cell(y, x);
      T corner[4], at00[2], at10[2], at01[2], at11[2];
      to_corners(y, x, cell, corner);
      cell.adjoint(corner, at00, at10, at01, at11);
      for (int c = 0; c < 2; ++c) {
        g00[c * cells + x] = at00[c];
        g01[c * cells + x] = at01[c];
        g10[c * cells + x] = at10[c];
        g11[c * cells + x] = at11[c];
      }
    }
  };
  const auto add = [&](int64_t y, const std::vector<T>& part) {
    if (y < first || y >= end) return;
    for (int c = 0; c < 2; ++c) {
      T* row = gradient + (c * field.height + y) * field.width;
      const T *right_of = &part[c * cells], *left_of = &part[(2 + c) * cells];
      for (int64_t x = 0; x < cells; ++x) row[x + 1] += left_of[x];
      for (int64_t x = 0; x < cells; ++x) row[x] += right_of[x];
    }
  };
  for (int64_t y = first > 0 ? first - 1 : 0; y < end && y < field.height - 1; ++y) {
    evaluate(y);
    add(y, above);
    add(y + 1, below);
  }
}

}  // namespace diffreg
