// One value a cell out of its corner determinants, and the adjoint of that reduction; the
// determinants themselves stand in common/determinant.h.
#pragma once

#include "../common/determinant.h"
#include "../common/options.h"

namespace diffreg::jacobian_determinant {

enum class Reduce { none, min, mean, bound };
constexpr Named<Reduce> kReduces[] = {
    {"none", Reduce::none}, {"min", Reduce::min}, {"mean", Reduce::mean}, {"bound", Reduce::bound}};

// Values of a cell.
template <int D, Reduce reduce>
constexpr int kValues = reduce == Reduce::none ? 1 << D : 1;

// The first of the smallest of some values; a NaN among them wins, as in torch.min.
template <int count, typename T>
struct Smallest {
  T value;
  int index;

  DIFFREG_HD explicit Smallest(const T* values) : value(values[0]), index(0) {
    DIFFREG_UNROLL
    for (int k = 1; k < count; ++k) {
      const bool smaller = (value == value) & !(values[k] >= value);
      value = unless_zero(smaller, values[k], value);
      index = unless_zero(smaller, k, index);
    }
  }
};

template <int D, typename T>
DIFFREG_HD T mean(const T* corner) {
  if constexpr (D == 2) return ((corner[0] + corner[1]) + (corner[2] + corner[3])) / 4;
  return (((corner[0] + corner[1]) + (corner[2] + corner[3])) +
          ((corner[4] + corner[5]) + (corner[6] + corner[7]))) /
         8;
}

// Lower bound of the determinant in the whole cell: its smallest Bernstein coefficient. In 2-D the
// determinant is affine and the coefficients are the corners; in 3-D it is quadratic along every
// axis, and each coefficient is the mean of the 1, 2, 4 or 8 determinants of edges whose ends along
// the axes add up to it.
template <int D, typename T>
DIFFREG_HD T bound(const Cell<D, T>& cell) {
  if constexpr (D == 2) {
    T corner[4];
    cell.determinants(corner);
    return Smallest<4, T>(corner).value;
  } else {
    T sum[27] = {};  // 9 i + 3 j + k
    // Which end of axis 0 the edges along 1 and 2 are at, of axis 1 those along 0 and 2, of axis 2
    // those along 0 and 1.
    DIFFREG_UNROLL
    for (int on12 = 0; on12 < 4; ++on12) {
      const int g1 = on12 % 2, f2 = on12 / 2;
      T across[3][3] = {};  // by the ends of axis 0
      DIFFREG_UNROLL
      for (int on0 = 0; on0 < 4; ++on0) {
        const int f0 = on0 % 2, g0 = on0 / 2;
        T one[3];
        cross(cell.edge[1][f0 + 2 * f2], cell.edge[2][g0 + 2 * g1], one);
        DIFFREG_UNROLL
        for (int c = 0; c < 3; ++c) across[f0 + g0][c] += one[c];
      }
      DIFFREG_UNROLL
      for (int i = 0; i < 3; ++i) {
        DIFFREG_UNROLL
        for (int j = 0; j < 4; ++j) {
          const int e1 = j % 2, e2 = j / 2;
          sum[9 * i + 3 * (e1 + g1) + e2 + f2] += Cell<D, T>::dot(cell.edge[0][j], across[i]);
        }
      }
    }
    DIFFREG_UNROLL
    for (int k = 0; k < 27; ++k) {
      const int middles = (k / 9 == 1) + (k / 3 % 3 == 1) + (k % 3 == 1);
      sum[k] /= T(1 << middles);
    }
    T least = sum[0], total = sum[0];
    DIFFREG_UNROLL
    for (int k = 1; k < 27; ++k) {
      least = sum[k] < least ? sum[k] : least;
      total += sum[k];
    }
    return total == total ? least : total;
  }
}

// Not for Reduce::none.
template <int D, typename T>
DIFFREG_HD T reduced(Reduce reduce, const Cell<D, T>& cell) {
  if (reduce == Reduce::bound) return bound(cell);
  T corner[1 << D];
  cell.determinants(corner);
  return reduce == Reduce::min ? Smallest<1 << D, T>(corner).value : mean<D>(corner);
}

// The adjoint of reduced(): corner holds the determinants, and then the gradient to them.
template <int D, typename T>
DIFFREG_HD void spread(Reduce reduce, T upstream, T* corner) {
  constexpr int kCorners = 1 << D;
  const int chosen = Smallest<kCorners, T>(corner).index;
  DIFFREG_UNROLL
  for (int k = 0; k < kCorners; ++k) {
    corner[k] = reduce == Reduce::mean ? upstream / kCorners : (k == chosen ? upstream : T(0));
  }
}

}  // namespace diffreg::jacobian_determinant
