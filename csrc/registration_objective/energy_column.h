// CUDA only: the energies of one column of a field, row after row, and their gradient to it.
#pragma once

#include "../common/determinant.h"
#include "strips.h"

namespace diffreg::registration_objective {

// Every stencil is evaluated once, by the lane of its first (or middle) vertex, when its last row
// has come; what it adds to the columns beside it goes there by shuffles, once a row. Beyond the
// image the border repeats, so that first and mixed differences are 0 there.
template <typename T, bool differentiates>
class EnergyColumn {
 public:
  DIFFREG_DEVICE void move_to(const T* u) {
#pragma unroll
    for (int c = 0; c < D; ++c) {
      before_[c] = here_[c];
      here_[c] = u[c];
      right_[c] = shuffle_from_right(u[c]);
    }
  }

  // Completes the stencils that end in row at.y + 1, and moves there. Adds the energies of those
  // that row at.y starts, and the gradient of row at.y - 1.
  DIFFREG_DEVICE void advance(const Setup<T>& setup, const Sample<T>& sample, const Position& at,
                              const T* below, T* energy, T* gradient) {
    const int32_t last = setup.problem.to[0] - 1;
    Next next;
    add_differences(setup, sample, at, below, next, energy);
    if (at.y >= 0 && at.y < last && at.has_cell) add_cell(setup, sample, below, next, energy);
#pragma unroll
    for (int c = 0; c < D; ++c) {
      if constexpr (differentiates) {
        gradient[c] += closing_[c];
        closing_[c] =
            open_[c] + shuffle_from_left(open_right_[c]) + shuffle_from_right(next.to_left[c]);
        open_[c] = next.open[c];
        open_right_[c] = next.open_right[c];
      }
      before_[c] = here_[c];
      here_[c] = below[c];
      right_[c] = next.right[c];
    }
  }

 private:
  // Of the row below: u to the right, and what it has got so far, with the column to its right;
  // to_left: what row y gives to the column to its left.
  struct Next {
    T right[D], open[D], open_right[D], to_left[D];
  };

  DIFFREG_DEVICE void add_differences(const Setup<T>& setup, const Sample<T>& sample,
                                      const Position& at, const T* below, Next& next, T* energy) {
    using deformation_energy::mixed_difference;
    using deformation_energy::second_difference;
    const deformation_energy::Slopes<D, T>& factor = setup.factor;
    const T diffusion = differentiates ? reload(sample.diffusion) : T(0);
    const T bending = differentiates ? reload(sample.bending) : T(0);
    const bool bends0 = at.y > 0 && at.y + 1 < setup.problem.to[0];
#pragma unroll
    for (int c = 0; c < D; ++c) {
      const T left = shuffle_from_left(here_[c]);
      next.right[c] = shuffle_from_right(below[c]);
      const auto add = [&](T difference, T by, T upstream, T& sum) {
        const T slope = by * difference;
        sum += slope * difference;
        return upstream * slope;
      };
      const T first0 = add(below[c] - here_[c], factor.first[0][c], diffusion, energy[0]);
      const T first1 = add(right_[c] - here_[c], factor.first[1][c], diffusion, energy[0]);
      const T second0 = add(second_difference(before_[c], here_[c], below[c]),
                            bends0 ? factor.second[0][c] : T(0), bending, energy[1]);
      const T second1 = add(second_difference(left, here_[c], right_[c]),
                            at.bends ? factor.second[1][c] : T(0), bending, energy[1]);
      const T mixed = add(mixed_difference(here_[c], right_[c], below[c], next.right[c]),
                          factor.mixed[0][c], bending, energy[1]);
      closing_[c] += second0;
      open_[c] += mixed - (first0 + first1) - 2 * (second0 + second1);
      open_right_[c] += first1 + second1 - mixed;
      next.to_left[c] = second1;
      next.open[c] = first0 + second0 - mixed;
      next.open_right[c] = mixed;
    }
  }

  DIFFREG_DEVICE void add_cell(const Setup<T>& setup, const Sample<T>& sample, const T* below,
                               Next& next, T* energy) {
    const T determinant = differentiates ? reload(sample.determinant) : T(0);
    const T* vertices[] = {here_, below, right_, next.right};
    const Cell<D, T> cell([&](int vertex, int c) { return vertices[vertex][c]; });
    T corner[4], slope[4];
    cell.determinants(corner);
    with_penalty(setup.problem.penalty, setup.threshold, [&](const auto& psi) {
      energy[2] += setup.factor.corner * ((psi.value(corner[0]) + psi.value(corner[1])) +
                                          (psi.value(corner[2]) + psi.value(corner[3])));
      if constexpr (differentiates) {
#pragma unroll
        for (int k = 0; k < 4; ++k) slope[k] = determinant * psi.slope(corner[k]);
      }
    });
    if (!differentiates || determinant == 0) return;  // a weight of 0 gives nothing, not even NaN
    T to[4][D];
    cell.adjoint(slope, to);
#pragma unroll
    for (int c = 0; c < D; ++c) {
      open_[c] += to[0][c];
      next.open[c] += to[1][c];
      open_right_[c] += to[2][c];
      next.open_right[c] += to[3][c];
    }
  }

  T before_[D] = {}, here_[D] = {}, right_[D] = {};  // rows y - 1 and y, and y to the right
  // Gradient of rows y - 1 and y, so far, and what row y gives to the column to its right.
  T closing_[D] = {}, open_[D] = {}, open_right_[D] = {};
};

}  // namespace diffreg::registration_objective
