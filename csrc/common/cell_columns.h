// The columns of a displacement field, row after row as a march comes down them (columns.h), their
// cells, and the scatter of a gradient from a cell to its four vertices.
#pragma once

#include "columns.h"
#include "determinant.h"

namespace diffreg {

template <typename T>
struct Vector {
  T of[2];
};

// A column of both components of one sample of a field (N, 2, H, W).
template <typename S>
struct FieldColumn {
  Column<S> u[2];

  DIFFREG_DEVICE FieldColumn(const S* field, int64_t n, int32_t height, int32_t width, int32_t x)
      : u{{field + 2 * n * height * width, height, width, x},
          {field + (2 * n + 1) * height * width, height, width, x}} {}

  DIFFREG_DEVICE Vector<Arithmetic<S>> at(int32_t y, bool inner = false) const {
    return {u[0].at(y, inner), u[1].at(y, inner)};
  }
};

// The field at a lane's column and, beyond it, at those to its right.
template <typename T, int columns>
struct FieldRow {
  T u[columns][2];

  DIFFREG_DEVICE explicit FieldRow(const Vector<T>& here) {
    for (int b = 0; b < columns; ++b) {
      for (int c = 0; c < 2; ++c) u[b][c] = b == 0 ? here.of[c] : shuffle_from_right(here.of[c], b);
    }
  }
};

// The cell between two rows, to the right of a lane's column.
template <typename T, int columns>
DIFFREG_DEVICE Cell<2, T> cell_of(const FieldRow<T, columns>& here,
                                  const FieldRow<T, columns>& below) {
  return Cell<2, T>([&](int vertex, int c) {
    return vertex % 2 == 0 ? here.u[vertex / 2][c] : below.u[vertex / 2][c];
  });
}

// Scatters the gradient of cells to their vertices, a row of cells after the other: what a cell
// adds to the vertices below it is carried over to the next row.
template <typename T>
struct CellScatter {
  T below[2] = {}, below_right[2] = {};  // carried over from the last cell

  // The next cell's, together with the last one's: own (2) to the vertex that the cell starts at,
  // right (2) to the one beside it.
  DIFFREG_DEVICE void add(const Cell<2, T>& cell, const T* corner, T* own, T* right) {
    T vertex[4][2];  // a + 2b: b to the right, a below
    cell.adjoint(corner, vertex);
    for (int c = 0; c < 2; ++c) {
      own[c] = below[c] + vertex[0][c];
      right[c] = below_right[c] + vertex[2][c];
      below[c] = vertex[1][c];
      below_right[c] = vertex[3][c];
    }
  }
};

}  // namespace diffreg
