// CPU only: the gradient of the three energies to the rows of a strip.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "energy_rows.h"

namespace diffreg::deformation_energy {

// Gradient of the weighted differences to a row:
//   first differences:  sum_k a_k T_k u     T u = (u[i] - u[i-1]) - (u[i+1] - u[i]), differences
//   second differences: sum_k b_k S_k u     that leave the axis left out; S = T but at the ends,
//   twice mixed differences:  sum_{k<l} c_kl T_k T_l u
template <int D, typename T>
class DifferenceGradient {
 public:
  DifferenceGradient(const Field<D, T>& field, const Slopes<D, T>& slope)
      : field_(field), slope_(slope), row_(2 * field.grid.width) {}

  // Writes it to a row of gradient (D, *S).
  void fill(int64_t row, T* gradient) {
    const Grid<D>& grid = field_.grid;
    for (int c = 0; c < D; ++c) {
      const RowNeighbours<D, T> u(field_, c, row);
      across(u, c);
      along(u.here, c, gradient + c * grid.voxels + row * grid.width);
    }
  }

 private:
  // By the leading axes alone, into row 0 of the scratch; and sum_k c_kl T_k u, to which T_l of the
  // last axis is to be applied, into row 1.
  void across(const RowNeighbours<D, T>& u, int c) {
    constexpr int last = D - 1;
    const int64_t W = field_.grid.width;
    T *sum = row_.data(), *mixed = sum + W;
    T first[last], back[last], centre[last], ahead[last], pair[last];
    for (int k = 0; k < last; ++k) {
      const T second = slope_.second[k][c];
      first[k] = slope_.first[k][c];
      back[k] = u.back[k] ? second : T(0);
      centre[k] = u.centre[k] ? 2 * second : T(0);
      ahead[k] = u.ahead[k] ? second : T(0);
      pair[k] = slope_.mixed[pair_of(k, last)][c];
    }
    const T leading = slope_.mixed[0][c];  // of axes 0 and 1, in 3-D
#pragma GCC ivdep
    for (int64_t x = 0; x < W; ++x) {  // hot: across
      T total = 0, to_mix = 0;
      DIFFREG_UNROLL
      for (int k = 0; k < last; ++k) {
        const T d0 = u.before[k][x] - u.before2[k][x], d1 = u.here[x] - u.before[k][x];
        const T d2 = u.after[k][x] - u.here[x], d3 = u.after2[k][x] - u.after[k][x];
        total += first[k] * (d1 - d2);
        total += back[k] * (d1 - d0) - centre[k] * (d2 - d1) + ahead[k] * (d3 - d2);
        to_mix += pair[k] * (d1 - d2);
      }
      if constexpr (D == 3) {
        // T_0 T_1 u, from T_1 u of the planes before, of and after the row.
        const T before = flatness(u.diagonal[0][0][x], u.before[0][x], u.diagonal[0][1][x]);
        const T here = flatness(u.before[1][x], u.here[x], u.after[1][x]);
        const T after = flatness(u.diagonal[1][0][x], u.after[0][x], u.diagonal[1][1][x]);
        total += leading * flatness(before, here, after);
      }
      sum[x] = total;
      mixed[x] = to_mix;
    }
  }

  // T of three values.
  DIFFREG_INLINE static T flatness(T before, T here, T after) {
    return (here - before) - (after - here);
  }

  // By the last axis too, into the gradient's row.
  void along(const T* u, int c, T* gradient) const {
    constexpr int last = D - 1;
    const int64_t W = field_.grid.width;
    const T *sum = row_.data(), *mixed = sum + W;
    const T first = slope_.first[last][c], second = slope_.second[last][c];
    const auto at = [&](int64_t x, int64_t left2, int64_t left, int64_t right, int64_t right2,
                        T back, T centre, T ahead) {
      const T d0 = u[x + left] - u[x + left2], d1 = u[x] - u[x + left];
      const T d2 = u[x + right] - u[x], d3 = u[x + right2] - u[x + right];
      return sum[x] + first * (d1 - d2) +
             (back * (d1 - d0) - centre * (d2 - d1) + ahead * (d3 - d2)) +
             flatness(mixed[x + left], mixed[x], mixed[x + right]);
    };
    const auto at_end = [&](int64_t x) {
      const int64_t left = x > 0 ? -1 : 0, right = x + 1 < W ? 1 : 0;
      const bool centred = left != 0 && right != 0;
      gradient[x] =
          at(x, x > 1 ? -2 : left, left, right, x + 2 < W ? 2 : right, x > 1 ? second : T(0),
             centred ? 2 * second : T(0), x + 2 < W ? second : T(0));
    };
    const int64_t inner = std::min<int64_t>(2, W), outer = std::max(inner, W - 2);
    for (int64_t x = 0; x < inner; ++x) at_end(x);
#pragma GCC ivdep
    for (int64_t x = inner; x < outer; ++x) {  // hot: along
      gradient[x] = at(x, -2, -1, 1, 2, second, 2 * second, second);
    }
    for (int64_t x = outer; x < W; ++x) at_end(x);
  }

  Field<D, T> field_;
  Slopes<D, T> slope_;
  std::vector<T> row_;  // scratch
};

// Gradient of the weighted energies to the rows of one strip; and, where asked for, the energies.
template <int D, typename T, PenaltyKind kind>
class EnergyGradient {
 public:
  // Without `penalised` the determinants give the gradient nothing, not even NaN.
  EnergyGradient(const Field<D, T>& field, const Slopes<D, T>& slope, const Penalty<T, kind>& psi,
                 bool penalised, int64_t first, int64_t end)
      : field_(field),
        differences_(field, slope),
        slope_(slope.corner),
        psi_(psi),
        penalised_(penalised),
        first_(first),
        end_(end),
        cells_(field.grid.width),
        terms_(field.grid.width) {}

  // Fills the strip's rows of gradient (D, *S); adds their stencils' energies where `valued`.
  template <bool valued>
  void run(T* gradient, const Coefficients<D>& factor, double* energies) {
    const Grid<D>& grid = field_.grid;
    const int64_t reach = grid.cell_reach();
    int64_t next = first_;  // the first row that has not been filled yet
    for (int64_t row = std::max<int64_t>(first_ - reach, 0); row < end_; ++row) {
      for (; next < std::min(row + reach + 1, end_); ++next) differences_.fill(next, gradient);
      const bool counts = valued && row >= first_;
      RowSums<D> sums;
      if (penalised_ && grid.starts_cells(row)) {
        sums.corner = counts ? evaluate<true>(row) : evaluate<false>(row);
        add_cells(cells_, grid, row, first_, end_, gradient);
      } else if (counts) {
        sums.corner = penalties_of(field_, psi_, row);
      }
      if (!counts) continue;
      for (int c = 0; c < D; ++c) {
        add_squares(RowNeighbours<D, T>(field_, c, row), c, grid.width, sums);
      }
      sums.add_to(factor, energies);
    }
  }

 private:
  // What the cells that start at a row give, and the sum of their penalties.
  template <bool valued>
  double evaluate(int64_t row) {
    const VertexRows<D, T> vertices(field_, row);
    T* const terms = terms_.data();
    const int64_t cells = field_.grid.width - 1;
    for_lanes(0, cells, [&](int64_t x) DIFFREG_INLINE_LAMBDA {
      const Cell<D, T> cell = vertices.cell(x);
      T corner[Cell<D, T>::kCorners], slope[Cell<D, T>::kCorners];
      cell.determinants(corner);
      DIFFREG_UNROLL
      for (int k = 0; k < Cell<D, T>::kCorners; ++k) {
        slope[k] = slope_ * psi_.slope(corner[k]);
      }
      cells_.store(x, cell, slope);
      // Stored before they are summed: in one loop, neither would be vectorised.
      if constexpr (valued) terms[x] = sum_of_penalties<D>(psi_, corner);
    });
    if constexpr (!valued) return 0;
    return sum_row<T>(0, cells, [&](int64_t x) DIFFREG_INLINE_LAMBDA { return terms[x]; });
  }

  Field<D, T> field_;
  DifferenceGradient<D, T> differences_;
  T slope_;  // of a penalty
  Penalty<T, kind> psi_;
  bool penalised_;
  int64_t first_, end_;
  CellRow<D, T> cells_;
  std::vector<T> terms_;  // scratch
};

}  // namespace diffreg::deformation_energy
