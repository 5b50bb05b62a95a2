// CPU only: the cells of a field row by row, and the vertex gradient gathered from the rows of
// cells around it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "determinant.h"
#include "grid.h"
#include "lanes.h"

namespace diffreg {

// One sample's displacement (D, *S).
template <int D, typename T>
struct Field {
  const T* data;
  Grid<D> grid;

  const T* row(int component, int64_t row) const {
    return data + component * grid.voxels + row * grid.width;
  }
};

// The rows of vertices around the cells that start at a row; which is told by the leading axes'
// bits of a vertex.
template <int D, typename T>
struct VertexRows {
  static constexpr int kRows = 1 << (D - 1);
  const T* row[kRows][D];

  VertexRows(const Field<D, T>& field, int64_t first) {
    for (int j = 0; j < kRows; ++j) {
      for (int c = 0; c < D; ++c) row[j][c] = field.row(c, first + offset(field.grid, j));
    }
  }

  static int64_t offset(const Grid<D>& grid, int j) {
    int64_t rows = 0;
    for (int k = 0; k < D - 1; ++k) rows += j >> k & 1 ? grid.stride[k] : 0;
    return rows;
  }

  DIFFREG_INLINE Cell<D, T> cell(int64_t x) const {
    return Cell<D, T>(
        [&](int vertex, int c) { return row[vertex & (kRows - 1)][c][x + (vertex >> (D - 1))]; });
  }
};

// What the cells of one row give to the rows of vertices around them. Ends are padded with zeros:
// vertex x collects from the cell on its left, at x, and the one on its right, at x + 1.
template <int D, typename T>
class CellRow {
 public:
  static constexpr int kRows = VertexRows<D, T>::kRows;

  explicit CellRow(int64_t width) : stride_(width + 1), parts_(2 * kRows * D * stride_) {}

  // Stores what cell x gives to its vertices.
  DIFFREG_INLINE void store(int64_t x, const Cell<D, T>& cell, const T* corner) {
    T vertex[Cell<D, T>::kCorners][D];
    cell.adjoint(corner, vertex);
    DIFFREG_UNROLL
    for (int v = 0; v < Cell<D, T>::kCorners; ++v) {
      DIFFREG_UNROLL
      for (int c = 0; c < D; ++c)
        part(v & (kRows - 1), 1 - (v >> (D - 1)), c)[x + 1] = vertex[v][c];
    }
  }

  // Adds component c of what the cells give to the j-th row around them.
  void add_to(int j, int c, T* row) const {
    const T *left = part(j, 0, c), *right = part(j, 1, c) + 1;
    for (int64_t x = 0; x + 1 < stride_; ++x) row[x] += left[x] + right[x];
  }

 private:
  DIFFREG_INLINE T* part(int j, int right, int c) {
    return &parts_[((j * 2 + right) * D + c) * stride_];
  }
  DIFFREG_INLINE const T* part(int j, int right, int c) const {
    return &parts_[((j * 2 + right) * D + c) * stride_];
  }

  int64_t stride_;
  std::vector<T> parts_;
};

// Adds what the cells that start at a row give to the rows of vertices in [first, end).
template <int D, typename T>
void add_cells(const CellRow<D, T>& cells, const Grid<D>& grid, int64_t row, int64_t first,
               int64_t end, T* gradient) {  // (D, *S)
  for (int j = 0; j < CellRow<D, T>::kRows; ++j) {
    const int64_t to = row + VertexRows<D, T>::offset(grid, j);
    if (to < first || to >= end) continue;
    for (int c = 0; c < D; ++c) cells.add_to(j, c, gradient + c * grid.voxels + to * grid.width);
  }
}

// Gradient of a sum over cells to the rows of vertices [first, end). Each vertex adds the rows of
// cells around it in raster order, of each the left and the right one, whichever strip it is in.
// corners_of(row) gives a to_corners(x, cell, corner), which writes the gradient to the
// determinants of the cell at x; what it holds by value stays in registers.
template <int D, typename T, typename CornersOf>
void add_cell_gradients(const Field<D, T>& field, int64_t first, int64_t end,
                        T* gradient,  // (D, *S)
                        const CornersOf& corners_of) {
  const Grid<D>& grid = field.grid;
  CellRow<D, T> cells(grid.width);
  for (int64_t row = std::max<int64_t>(first - grid.cell_reach(), 0); row < end; ++row) {
    if (!grid.starts_cells(row)) continue;
    const VertexRows<D, T> vertices(field, row);
    const auto to_corners = corners_of(row);
    for_lanes(0, grid.width - 1, [&](int64_t x) DIFFREG_INLINE_LAMBDA {
      const Cell<D, T> cell = vertices.cell(x);
      T corner[Cell<D, T>::kCorners];
      to_corners(x, cell, corner);
      cells.store(x, cell, corner);
    });
    add_cells(cells, grid, row, first, end, gradient);
  }
}

}  // namespace diffreg
