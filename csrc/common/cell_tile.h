// A displacement field in shared memory, its cells, and what each vertex collects from its four
// cells. Called by deformation_energy.cu and jacobian_determinant.cu.
#pragma once

#include "determinant.h"
#include "tile.h"

namespace diffreg {

// Both components of a field, in the order of the tile.
template <typename S, int columns, int rows>
struct FieldTile {
  using T = Arithmetic<S>;
  Halo<S, columns, rows> u[2];

  // From voxel (y, x) of one sample (2, H, W) on.
  DIFFREG_DEVICE void fill(const S* field, int64_t height, int64_t width, int64_t y, int64_t x) {
    u[0].fill(field, height, width, y, x);
    u[1].fill(field + height * width, height, width, y, x);
  }

  DIFFREG_DEVICE Cell<T> cell(int row, int column) const {
    const T u00[] = {u[0].at(row, column), u[1].at(row, column)};
    const T u10[] = {u[0].at(row + 1, column), u[1].at(row + 1, column)};
    const T u01[] = {u[0].at(row, column + 1), u[1].at(row, column + 1)};
    const T u11[] = {u[0].at(row + 1, column + 1), u[1].at(row + 1, column + 1)};
    return Cell<T>(u00, u10, u01, u11);
  }
};

// Adds to `sum` (2) what the cells around vertex (y, x) give it: those above (left, right), then
// those below. (row, column) is the vertex's place in the tile.
// to_corners(y, x, cell, corner) writes the gradient to the four determinants of cell (y, x).
template <typename Tile, typename ToCorners, typename T = typename Tile::T>
DIFFREG_DEVICE void gather_cells(const Tile& tile, int row, int column, int64_t height,
                                 int64_t width, int64_t y, int64_t x, const ToCorners& to_corners,
                                 T* sum) {
#pragma unroll
  for (int a = 1; a >= 0; --a) {
#pragma unroll
    for (int b = 1; b >= 0; --b) {
      if (!inside(y - a, height - 1) || !inside(x - b, width - 1)) continue;
      const Cell<T> cell = tile.cell(row - a, column - b);
      T corner[4], at[2][2][2];
      to_corners(y - a, x - b, cell, corner);
      cell.adjoint(corner, at[0][0], at[1][0], at[0][1], at[1][1]);
      sum[0] += at[a][b][0];
      sum[1] += at[a][b][1];
    }
  }
}

}  // namespace diffreg
