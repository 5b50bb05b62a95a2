// One value a cell out of its corner determinants, and the adjoint of that reduction; the
// determinants themselves stand in common/determinant.h.
#pragma once

#include "../common/determinant.h"
#include "../common/options.h"

namespace diffreg::jacobian_determinant {

enum class Reduce { none, min, mean, bound };
constexpr Named<Reduce> kReduces[] = {
    {"none", Reduce::none}, {"min", Reduce::min}, {"mean", Reduce::mean}, {"bound", Reduce::bound}};

// The first of the smallest of some values; a NaN among them wins, as in torch.min.
template <int count, typename T>
struct Smallest {
  T value;
  int index;

  DIFFREG_HD explicit Smallest(const T* values) : value(values[0]), index(0) {
    DIFFREG_UNROLL
    for (int k = 1; k < count; ++k) {
      const bool smaller = value == value && !(values[k] >= value);
      value = smaller ? values[k] : value;
      index = smaller ? k : index;
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
// axis. Each coefficient of a product of linear forms is the mean of the products of theirs that
// belong to it: 1, 2, 4 or 8 determinants of edges.
template <int D, typename T>
DIFFREG_HD T bound(const Cell<D, T>& cell) {
  if constexpr (D == 2) {
    T corner[4];
    cell.determinants(corner);
    return Smallest<4, T>(corner).value;
  } else {
    T smallest = 0;
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) {
        for (int k = 0; k < 3; ++k) {
          T sum = 0;
          int count = 0;
          // Which end of axis 0 the edges along 1 and 2 are at, of axis 1 those along 0 and 2, of
          // axis 2 those along 0 and 1.
          for (int f0 = i > 1; f0 <= (i > 0); ++f0) {
            for (int e1 = j > 1; e1 <= (j > 0); ++e1) {
              for (int e2 = k > 1; e2 <= (k > 0); ++e2) {
                const int g0 = i - f0, g1 = j - e1, f2 = k - e2;
                const T* e = cell.edge[0][e1 + 2 * e2];
                const T* f = cell.edge[1][f0 + 2 * f2];
                const T* g = cell.edge[2][g0 + 2 * g1];
                sum += determinant(e, f, g);
                ++count;
              }
            }
          }
          const T coefficient = sum / T(count);
          const bool first = i + j + k == 0;
          if (first || (smallest == smallest && !(coefficient >= smallest))) smallest = coefficient;
        }
      }
    }
    return smallest;
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
