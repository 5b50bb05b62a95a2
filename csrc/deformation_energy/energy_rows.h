// CPU only: the three energies of one row of a field, and their gradient to it, in one pass over
// the rows around it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../common/cell_rows.h"
#include "../common/reduce.h"
#include "deformation_energy.h"

namespace diffreg::deformation_energy {

template <typename T>
DIFFREG_INLINE T squared(T d) {
  return d * d;
}

// Sums of squares of the stencils that start in (or are centred on) a row, one for each factor.
struct RowSums {
  double first[D][D] = {}, second[D][D] = {}, mixed[D] = {}, corner = 0;

  void add_to(const Coefficients& factor, double* energies) const {
    for (int c = 0; c < D; ++c) {
      for (int k = 0; k < D; ++k) {
        energies[0] += factor.first[k][c] * first[k][c];
        energies[1] += factor.second[k][c] * second[k][c];
      }
      energies[1] += factor.mixed[c] * mixed[c];
    }
    energies[2] += factor.corner * corner;
  }
};

// Which differences along an axis read the vertex at `at`, as factors: 0 for those that would
// leave the axis.
template <typename T>
struct AxisFactors {
  T before, after;      // first differences to the vertex, and from it
  T back, here, ahead;  // second differences centred on the vertex before, on it, behind it

  AxisFactors(T first, T second, int64_t at, int64_t size)
      : before(at > 0 ? first : T(0)),
        after(at + 1 < size ? first : T(0)),
        back(at > 1 ? second : T(0)),
        here(at > 0 && at + 1 < size ? -2 * second : T(0)),
        ahead(at + 2 < size ? second : T(0)) {}
};

// Five voxels of a component along an axis, around the vertex in the middle, as differences.
template <typename T>
struct AxisDifferences {
  T d[4];

  DIFFREG_INLINE AxisDifferences(T u0, T u1, T u2, T u3, T u4)
      : d{u1 - u0, u2 - u1, u3 - u2, u4 - u3} {}

  DIFFREG_INLINE T after() const { return d[2]; }
  DIFFREG_INLINE T second() const { return d[2] - d[1]; }
  DIFFREG_INLINE T gather(const AxisFactors<T>& f) const {
    return (f.before * d[1] - f.after * d[2]) +
           (f.back * (d[1] - d[0]) + f.here * (d[2] - d[1]) + f.ahead * (d[3] - d[2]));
  }
};

// One component of the field around row y: rows y-2 .. y+2, those outside replaced by the border's,
// where the factors are 0.
template <typename T>
class Stencil {
 public:
  Stencil(const Field<T>& field, const Slopes<T>& slope, int component, int64_t y)
      : width_(field.width),
        first_(slope.first[1][component]),
        second_(slope.second[1][component]),
        along0_(slope.first[0][component], slope.second[0][component], y, field.height),
        above_(y > 0 ? slope.mixed[component] : T(0)),
        below_(y + 1 < field.height ? slope.mixed[component] : T(0)) {
    for (int k = 0; k < 5; ++k) {
      row_[k] = field.row(component, std::clamp<int64_t>(y + k - 2, 0, field.height - 1));
    }
  }

  // Factors along the row at voxel x, and for one that is two voxels or more from both its ends.
  AxisFactors<T> along1(int64_t x) const { return {first_, second_, x, width_}; }
  AxisFactors<T> along1() const { return {first_, second_, 2, 5}; }

  // Gradient at voxel x, whose neighbours are at x + left2 .. x + right2; squares: of the first
  // difference and the second along axis 0, the same along axis 1, and the mixed difference.
  DIFFREG_INLINE T gather(int64_t x, const AxisFactors<T>& along1, int64_t left2, int64_t left,
                          int64_t right, int64_t right2, T* squares) const {
    const T* u = row_[2] + x;
    const AxisDifferences<T> v(row_[0][x], row_[1][x], u[0], row_[3][x], row_[4][x]);
    const AxisDifferences<T> h(u[left2], u[left], u[0], u[right], u[right2]);
    const auto across = [&](const T* upper, const T* lower) {
      const T before = lower[x + left] - upper[x + left], here = lower[x] - upper[x];
      const T after = lower[x + right] - upper[x + right];
      return AxisDifferences<T>(before, before, here, after, after);
    };
    const auto upper = across(row_[1], row_[2]), lower = across(row_[2], row_[3]);
    squares[0] = squared(v.after());
    squares[1] = squared(v.second());
    squares[2] = squared(h.after());
    squares[3] = squared(h.second());
    squares[4] = squared(lower.after());
    // Each mixed difference of the cells left and right of x, above the row and below it.
    const T mixed = above_ * upper.second() - below_ * lower.second();
    return v.gather(along0_) + h.gather(along1) - mixed;
  }

 private:
  const T* row_[5];
  int64_t width_;
  T first_, second_;
  AxisFactors<T> along0_;
  T above_, below_;
};

// The energies of the stencils that start in (or are centred on) row y.
template <typename T, PenaltyKind kind>
void add_row(const Field<T>& field, const Coefficients& factor, Penalty<T, kind> psi, int64_t y,
             double* energies) {
  const int64_t H = field.height, W = field.width;
  const T* u[D] = {field.row(0, y), field.row(1, y)};
  RowSums sums;
  sum_row<T>(
      1, W - 1,
      [&](int64_t x, T* out) {
        for (int c = 0; c < D; ++c) {
          out[c] = squared(second_difference(u[c][x - 1], u[c][x], u[c][x + 1]));
        }
      },
      sums.second[1]);
  const auto along1 = [&](int64_t x, T* out) {
    for (int c = 0; c < D; ++c) out[c] = squared(u[c][x + 1] - u[c][x]);
  };
  if (y + 1 == H) {
    sum_row<T>(0, W - 1, along1, sums.first[1]);
    return sums.add_to(factor, energies);
  }
  double cells[2 * D + 1] = {}, along0[2 * D] = {};
  sum_row<T>(
      0, W - 1,
      [&](int64_t x, T* out) {
        along1(x, out);
        for (int c = 0; c < D; ++c) {
          const T* at = u[c] + x;
          out[D + c] = squared(mixed_difference(at[0], at[1], at[W], at[W + 1]));
        }
        T corner[4];
        field.cell(y, x).determinants(corner);
        out[2 * D] = (psi.value(corner[0]) + psi.value(corner[1])) +
                     (psi.value(corner[2]) + psi.value(corner[3]));
      },
      cells);
  const int64_t above = y > 0 ? W : 0;  // no second difference is centred on the first row
  sum_row<T>(
      0, W,
      [&](int64_t x, T* out) {
        for (int c = 0; c < D; ++c) {
          const T* at = u[c] + x;
          out[c] = squared(at[W] - at[0]);
          out[D + c] = squared(second_difference(at[-above], at[0], at[W]));
        }
      },
      along0);
  for (int c = 0; c < D; ++c) {
    sums.first[1][c] = cells[c];
    sums.mixed[c] = cells[D + c];
    sums.first[0][c] = along0[c];
    sums.second[0][c] = y > 0 ? along0[D + c] : 0;
  }
  sums.corner = cells[2 * D];
  sums.add_to(factor, energies);
}

// Gradient of the weighted energies to the rows of one strip, one row after the other; and, where
// asked for, the energies themselves.
template <typename T, PenaltyKind kind>
class EnergyGradient {
 public:
  // From row `first` on. Without `penalised` the determinants give the gradient
  // nothing, not even NaN.
  EnergyGradient(const Field<T>& field, const Slopes<T>& slope, const Penalty<T, kind>& psi,
                 bool penalised, int64_t first)
      : field_(field),
        slope_(slope),
        psi_(psi),
        penalised_(penalised),
        above_(field.width),
        below_(field.width),
        terms_(5 * field.width) {
    if (first > 0) evaluate_cells<false>(first - 1);
  }

  // Fills gradient[c] (W) for row y, and adds its stencils' energies. Rows come in their order.
  template <bool valued>
  void row(int64_t y, T* const* gradient, const Coefficients& factor, double* energies) {
    RowSums sums;
    std::swap(above_, below_);
    sums.corner = evaluate_cells<valued>(y);
    for (int c = 0; c < D; ++c) add_differences<valued>(y, c, gradient[c], sums);
    if constexpr (valued) sums.add_to(factor, energies);
  }

 private:
  double cell_values(int64_t y) const {
    return sum_row<T>(0, field_.width - 1, [&](int64_t x) {
      T corner[4];
      field_.cell(y, x).determinants(corner);
      return (psi_.value(corner[0]) + psi_.value(corner[1])) +
             (psi_.value(corner[2]) + psi_.value(corner[3]));
    });
  }

  // What the cells of row y give, and the sum of their penalties.
  template <bool valued>
  double evaluate_cells(int64_t y) {
    const bool none = y + 1 >= field_.height || field_.width < 2;
    if (none || !penalised_) below_.clear();
    if (none || (!penalised_ && !valued)) return 0;
    if (!penalised_) return cell_values(y);
    T* const terms = terms_.data();
#pragma GCC ivdep  // no cell depends on another
    for (int64_t x = 0; x < field_.width - 1; ++x) {
      const Cell<T> cell = field_.cell(y, x);
      T corner[4], slope[4];
      cell.determinants(corner);
      for (int k = 0; k < 4; ++k) slope[k] = slope_.corner * psi_.slope(corner[k]);
      below_.store(x, cell, slope);
      if constexpr (valued) {
        terms[x] = (psi_.value(corner[0]) + psi_.value(corner[1])) +
                   (psi_.value(corner[2]) + psi_.value(corner[3]));
      }
    }
    if constexpr (!valued) return 0;
    return sum_row<T>(0, field_.width - 1, [&](int64_t x) { return terms[x]; });
  }

  template <bool valued>
  void add_differences(int64_t y, int c, T* gradient, RowSums& sums) {
    const Stencil<T> stencil(field_, slope_, c, y);
    const int64_t W = field_.width;
    const auto cells = [&](int64_t x) { return above_.at(1, c, x) + below_.at(0, c, x); };
    double total[5] = {};
    const auto at_border = [&](int64_t x) {
      const int64_t left = x > 0 ? -1 : 0, right = x + 1 < W ? 1 : 0;
      T squares[5];
      const T sum = stencil.gather(x, stencil.along1(x), x > 1 ? -2 : left, left, right,
                                   x + 2 < W ? 2 : right, squares);
      gradient[x] = sum + cells(x);
      if (left == 0 || right == 0) squares[3] = 0;
      for (int k = 0; k < 5; ++k) total[k] += double(squares[k]);
    };
    const int64_t inner = std::min<int64_t>(2, W), outer = std::max(inner, W - 2);
    for (int64_t x = 0; x < inner; ++x) at_border(x);
    const auto within = stencil.along1();
    T* const terms = terms_.data();
#pragma GCC ivdep
    for (int64_t x = inner; x < outer; ++x) {
      T squares[5];
      gradient[x] = stencil.gather(x, within, -2, -1, 1, 2, squares) + cells(x);
      if constexpr (valued) {
        for (int k = 0; k < 5; ++k) terms[k * W + x] = squares[k];
      }
    }
    if constexpr (valued) {
      const auto read = [&](int64_t x, T* out) {
        for (int k = 0; k < 5; ++k) out[k] = terms[k * W + x];
      };
      sum_row<T>(inner, outer, read, total);
    }
    for (int64_t x = outer; x < W; ++x) at_border(x);
    sums.first[0][c] = total[0];
    sums.second[0][c] = y > 0 && y + 1 < field_.height ? total[1] : 0;
    sums.first[1][c] = total[2];
    sums.second[1][c] = total[3];
    sums.mixed[c] = total[4];
  }

  Field<T> field_;
  Slopes<T> slope_;
  Penalty<T, kind> psi_;
  bool penalised_;
  CellRow<T> above_, below_;  // the cells on both sides of the row
  // A row's terms of the energies, stored before they are summed: in one loop, neither would be
  // vectorised.
  std::vector<T> terms_;
};

}  // namespace diffreg::deformation_energy
