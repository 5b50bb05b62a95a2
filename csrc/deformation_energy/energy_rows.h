// CPU only: the three energies of one row of a field.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cell_rows.h"
#include "../common/reduce.h"
#include "deformation_energy.h"

namespace diffreg::deformation_energy {

template <typename T>
DIFFREG_INLINE T squared(T d) {
  return d * d;
}

// Sums of squares of the stencils that start in (or are centred on) a row, one for each factor.
template <int D>
struct RowSums {
  double first[D][D] = {}, second[D][D] = {}, mixed[kPairs<D>][D] = {}, corner = 0;

  void add_to(const Coefficients<D>& factor, double* energies) const {
    for (int c = 0; c < D; ++c) {
      for (int k = 0; k < D; ++k) {
        energies[0] += factor.first[k][c] * first[k][c];
        energies[1] += factor.second[k][c] * second[k][c];
      }
      for (int p = 0; p < kPairs<D>; ++p) energies[1] += factor.mixed[p][c] * mixed[p][c];
    }
    energies[2] += factor.corner * corner;
  }
};

// One component of a field at a row and at the rows beside it along the leading axes; beyond the
// border there is the border's row, so that first and mixed differences across it are 0.
template <int D, typename T>
struct RowNeighbours {
  static constexpr int kLeading = D - 1;
  const T* here;
  const T *before[kLeading], *after[kLeading];    // the next rows
  const T *before2[kLeading], *after2[kLeading];  // those beyond
  const T* diagonal[2][2];                        // in 3-D, [before or after by axis 0][by axis 1]
  bool back[kLeading], centre[kLeading], ahead[kLeading];  // whether second differences are
                                                           // centred before, on and after the row

  RowNeighbours(const Field<D, T>& field, int component, int64_t row)
      : here(field.row(component, row)), diagonal{} {
    const Grid<D>& grid = field.grid;
    const auto at = [&](int64_t offset) { return here + offset * grid.width; };
    for (int k = 0; k < kLeading; ++k) {
      const int64_t index = grid.index(row, k), size = grid.size[k], stride = grid.stride[k];
      before[k] = at(grid.to_before(row, k));
      after[k] = at(grid.to_after(row, k));
      before2[k] = at(-std::min<int64_t>(index, 2) * stride);
      after2[k] = at(std::min<int64_t>(size - 1 - index, 2) * stride);
      back[k] = index > 1;
      centre[k] = index > 0 && index + 1 < size;
      ahead[k] = index + 2 < size;
    }
    if constexpr (D == 3) {
      for (int j = 0; j < 4; ++j) {
        const int64_t outer = j / 2 ? grid.to_after(row, 0) : grid.to_before(row, 0);
        const int64_t inner = j % 2 ? grid.to_after(row, 1) : grid.to_before(row, 1);
        diagonal[j / 2][j % 2] = at(outer + inner);
      }
    }
  }
};

// Squares of the differences that start at, or are centred on, voxel x: of every axis the first and
// the second, then of every pair of axes the mixed one. left and right lead to the neighbours along
// the row, 0 where there is none.
template <int D, typename T>
DIFFREG_INLINE void squares_at(const RowNeighbours<D, T>& u, int64_t x, int64_t left, int64_t right,
                               T* out) {
  constexpr int last = D - 1;
  const T here = u.here[x], beside = u.here[x + right];
  DIFFREG_UNROLL
  for (int k = 0; k < last; ++k) {
    const T after = u.after[k][x];
    out[k] = squared(after - here);
    out[D + k] = squared(second_difference(u.before[k][x], here, after));
    out[2 * D + pair_of(k, last)] =
        squared(mixed_difference(here, beside, after, u.after[k][x + right]));
  }
  out[last] = squared(beside - here);
  out[D + last] = squared(second_difference(u.here[x + left], here, beside));
  if constexpr (D == 3) {
    out[2 * D + pair_of(0, 1)] =
        squared(mixed_difference(here, u.after[1][x], u.after[0][x], u.diagonal[1][1][x]));
  }
}

// Adds the sums of one component's squares over a row.
template <int D, typename T>
void add_squares(const RowNeighbours<D, T>& u, int component, int64_t width, RowSums<D>& sums) {
  constexpr int kTerms = 2 * D + kPairs<D>;
  double total[kTerms] = {};
  const auto at_end = [&](int64_t x) {
    const int64_t left = x > 0 ? -1 : 0, right = x + 1 < width ? 1 : 0;
    T squares[kTerms];
    squares_at(u, x, left, right, squares);
    if (left == 0 || right == 0) squares[2 * D - 1] = 0;
    for (int k = 0; k < kTerms; ++k) total[k] += double(squares[k]);
  };
  at_end(0);
  sum_row<T>(
      1, width - 1, [&](int64_t x, T* out) DIFFREG_INLINE_LAMBDA { squares_at(u, x, -1, 1, out); },
      total);
  if (width > 1) at_end(width - 1);
  for (int k = 0; k < D; ++k) {
    sums.first[k][component] = total[k];
    sums.second[k][component] = k == D - 1 || u.centre[k] ? total[D + k] : 0;
  }
  for (int p = 0; p < kPairs<D>; ++p) sums.mixed[p][component] = total[2 * D + p];
}

template <int D, typename T, PenaltyKind kind>
DIFFREG_INLINE T sum_of_penalties(const Penalty<T, kind>& psi, const T* corner) {
  T pair[Cell<D, T>::kCorners / 2];
  DIFFREG_UNROLL
  for (int k = 0; k < Cell<D, T>::kCorners / 2; ++k) {
    pair[k] = psi.value(corner[2 * k]) + psi.value(corner[2 * k + 1]);
  }
  if constexpr (D == 2) return pair[0] + pair[1];
  return (pair[0] + pair[1]) + (pair[D == 3 ? 2 : 0] + pair[D == 3 ? 3 : 0]);
}

// Sum of the penalties of the cells that start at a row.
template <int D, typename T, PenaltyKind kind>
double penalties_of(const Field<D, T>& field, const Penalty<T, kind>& psi, int64_t row) {
  if (!field.grid.starts_cells(row)) return 0;
  const VertexRows<D, T> vertices(field, row);
  return sum_row<T>(0, field.grid.width - 1, [&](int64_t x) DIFFREG_INLINE_LAMBDA {
    T corner[Cell<D, T>::kCorners];
    vertices.cell(x).determinants(corner);
    return sum_of_penalties<D>(psi, corner);
  });
}

// The energies of the stencils that start in (or are centred on) a row.
template <int D, typename T, PenaltyKind kind>
void add_row(const Field<D, T>& field, const Coefficients<D>& factor, const Penalty<T, kind>& psi,
             int64_t row, double* energies) {
  RowSums<D> sums;
  for (int c = 0; c < D; ++c) {
    add_squares(RowNeighbours<D, T>(field, c, row), c, field.grid.width, sums);
  }
  sums.corner = penalties_of(field, psi, row);
  sums.add_to(factor, energies);
}

}  // namespace diffreg::deformation_energy
