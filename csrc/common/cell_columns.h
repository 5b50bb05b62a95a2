// The columns of a displacement field, layer after layer as a march comes along them (columns.h),
// their cells, and the scatter of a gradient from a cell to its vertices.
#pragma once

#include "columns.h"
#include "determinant.h"
#include "row_exchange.h"

namespace diffreg {

template <int D, typename T>
struct Components {
  T of[D];
};

// A column of all components of one sample of a field (N, D, *S); beyond the image its border
// repeats.
template <int D, typename S>
struct FieldColumn {
  using T = Arithmetic<S>;
  const S* top;
  int32_t layers, layer;
  int64_t voxels;

  DIFFREG_DEVICE FieldColumn(const S* field, int64_t n, const Extent<D>& extent,
                             const Across<D>& across)
      : top(field + D * n * extent.voxels + across.offset(extent)),
        layers(extent.layers()),
        layer(extent.layer),
        voxels(extent.voxels) {}

  // At layer z, which lies in the image where `inner` says so.
  DIFFREG_DEVICE Components<D, T> at(int32_t z, bool inner = false) const {
    return beside(0, z, inner);
  }
  // The same in the column so many voxels further in memory.
  DIFFREG_DEVICE Components<D, T> beside(int32_t offset, int32_t z, bool inner = false) const {
    const S* own = row_of(top, inner ? z : clamped(z, layers), layer) + offset;
    Components<D, T> u;
    for (int c = 0; c < D; ++c) u.of[c] = load(own + c * voxels);
    return u;
  }
};

// What a lane reads of a layer: its own row and, in a volume, the one after it.
template <int D, typename T>
struct FieldRows {
  Components<D, T> row[D - 1];
};

template <int D, typename S>
struct FieldRowColumns {
  FieldColumn<D, S> field;
  int32_t offset[D - 1] = {};

  DIFFREG_DEVICE FieldRowColumns(const S* displacement, int64_t n, const Extent<D>& extent,
                                 const Across<D>& across)
      : field(displacement, n, extent, across) {
    if constexpr (D == 3) offset[1] = inside(across.at[0], extent.size[1] - 1) ? extent.width() : 0;
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

  Face() = default;
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

// Scatters a gradient from where stencils start to the vertices that they reach, a layer after the
// other: what is given to the next layer is carried over.
template <int D, typename T>
class Scatter {
 public:
  // Moves on by a layer.
  DIFFREG_DEVICE void move_on() {
    for (int f = 0; f < kFace; ++f) {
      for (int c = 0; c < D; ++c) {
        here_[f][c] = next_[f][c];
        next_[f][c] = 0;
      }
    }
  }
  // The gradient of a cell, given that to its corners' determinants.
  DIFFREG_DEVICE void add(const Cell<D, T>& cell, const T* corner) {
    T vertex[2 * kFace][D];
    cell.adjoint(corner, vertex);
    for (int f = 0; f < kFace; ++f) {
      for (int c = 0; c < D; ++c) {
        here_[f][c] += vertex[2 * f][c];
        next_[f][c] += vertex[2 * f + 1][c];
      }
    }
  }
  // What goes from a lane's voxel to the next one along an axis.
  DIFFREG_DEVICE void flow(int axis, int c, T amount) {
    here_[0][c] -= amount;
    if (axis == 0) {
      next_[0][c] += amount;
    } else {
      here_[1 << (axis - 1)][c] += amount;
    }
  }
  // What a lane's voxel has got, from all around, once the layer is complete.
  DIFFREG_DEVICE Components<D, T> collect() {
    T row[D - 1][D];
    Components<D, T> own;
    for (int c = 0; c < D; ++c) {
      for (int r = 0; r < D - 1; ++r)
        row[r][c] = here_[r][c] + shuffle_from_left(here_[r + D - 1][c]);
      own.of[c] = row[0][c];
    }
    if constexpr (D == 3) {
      T from_before[D];
      exchange_(row[1], from_before);
      for (int c = 0; c < D; ++c) own.of[c] += from_before[c];
    }
    return own;
  }

 private:
  static constexpr int kFace = Face<D, T>::kVertices;
  T here_[kFace][D] = {}, next_[kFace][D] = {};
  ExchangeOf<D, D, T> exchange_;
};

}  // namespace diffreg
