// The columns of a displacement field, layer after layer as a march comes along them (columns.h),
// their cells, and the scatter of a gradient from a cell to its vertices.
#pragma once

#include "columns.h"
#include "determinant.h"
#include "row_exchange.h"

namespace diffreg {

template <int D, typename T>
struct Vector {
  T of[D];
};

// A column of all components of one sample of a field (N, D, *S).
template <int D, typename S>
struct FieldColumn {
  using T = Arithmetic<S>;
  Column<D, S> first;
  int64_t voxels;

  DIFFREG_DEVICE FieldColumn(const S* field, int64_t n, const Extent<D>& extent,
                             const Across<D>& across)
      : first(field + D * n * extent.voxels, extent, across), voxels(extent.voxels) {}

  DIFFREG_DEVICE Vector<D, T> at(int32_t z, bool inner = false) const {
    return beside(0, z, inner);
  }
  DIFFREG_DEVICE Vector<D, T> beside(int32_t offset, int32_t z, bool inner = false) const {
    const S* own = row_of(first.top, inner ? z : clamped(z, first.layers), first.layer) + offset;
    Vector<D, T> u;
    for (int c = 0; c < D; ++c) u.of[c] = load(own + c * voxels);
    return u;
  }
};

// What a lane reads of a layer: its own row and, in a volume, the one after it.
template <int D, typename T>
struct FieldRows {
  Vector<D, T> row[D - 1];
};

template <int D, typename S>
struct FieldRowColumns {
  FieldColumn<D, S> field;
  int32_t offset[D - 1] = {};

  DIFFREG_DEVICE FieldRowColumns(const S* displacement, int64_t n, const Extent<D>& extent,
                                 const Across<D>& across)
      : field(displacement, n, extent, across) {
    if constexpr (D == 3) offset[1] = RowOffsets(extent, across).after;
  }
  DIFFREG_DEVICE FieldRows<D, Arithmetic<S>> at(int32_t z, bool inner = false) const {
    FieldRows<D, Arithmetic<S>> rows;
    for (int r = 0; r < D - 1; ++r) rows.row[r] = field.beside(offset[r], z, inner);
    return rows;
  }
};

// The vertices of a cell in one layer, as Cell counts them without the first axis: those of a
// lane's column, then those of the one to its right.
template <int D, typename T>
struct Face {
  static constexpr int kVertices = 1 << (D - 1);
  T u[kVertices][D];

  DIFFREG_DEVICE explicit Face(const FieldRows<D, T>& rows) {
    for (int r = 0; r < D - 1; ++r) {
      for (int c = 0; c < D; ++c) {
        u[r][c] = rows.row[r].of[c];
        u[r + D - 1][c] = shuffle_from_right(u[r][c]);
      }
    }
  }
};

// The cell between two layers that starts at a lane's voxel.
template <int D, typename T>
DIFFREG_DEVICE Cell<D, T> cell_of(const Face<D, T>& here, const Face<D, T>& next) {
  return Cell<D, T>([&](int vertex, int c) {
    return vertex % 2 == 0 ? here.u[vertex / 2][c] : next.u[vertex / 2][c];
  });
}

// Scatters the gradient of cells to their vertices, a layer of cells after the other: what a cell
// gives to the next layer is carried over.
template <int D, typename T>
class CellScatter {
 public:
  // Takes the next cell, given the gradient to its corners' determinants; gives that to the voxel
  // that it starts at, of all cells around.
  DIFFREG_DEVICE void add(const Cell<D, T>& cell, const T* corner, T* own) {
    T vertex[2 * kFace][D], row[D - 1][D];
    cell.adjoint(corner, vertex);
    for (int c = 0; c < D; ++c) {
      T now[kFace];
      for (int f = 0; f < kFace; ++f) {
        now[f] = carried_[f][c] + vertex[2 * f][c];
        carried_[f][c] = vertex[2 * f + 1][c];
      }
      for (int r = 0; r < D - 1; ++r) row[r][c] = now[r] + shuffle_from_left(now[r + D - 1]);
      own[c] = row[0][c];
    }
    if constexpr (D == 3) {
      T from_before[D];
      exchange_(row[1], from_before);
      for (int c = 0; c < D; ++c) own[c] += from_before[c];
    }
  }

 private:
  static constexpr int kFace = Face<D, T>::kVertices;
  T carried_[kFace][D] = {};
  RowExchange<D, T> exchange_;
};

}  // namespace diffreg
