// CUDA only: the warped image at a voxel; the measures of one column of the images, row after row,
// and their gradient to the displacement.
#pragma once

#include "../common/central_difference.h"
#include "../correlation/part_moments.h"
#include "../parallel_level_sets/parallel_level_sets.h"
#include "../warp/corners.h"
#include "strips.h"

namespace diffreg::registration_objective {

using parallel_level_sets::Variant;

// A voxel for the measures: the warped image, its derivatives by the displacement, the fixed image
// and the weight.
template <typename T>
struct WarpedVoxel {
  T warped, slope[D], fixed, weight;

  // What is not finite counts as 0 where the weight is 0.
  DIFFREG_DEVICE void hide() {
    warped = visible(warped, weight);
    fixed = visible(fixed, weight);
    for (int k = 0; k < D; ++k) slope[k] = visible(slope[k], weight);
  }
};

// Voxel (y, x) of the fixed grid, displaced by u.
template <bool differentiates, typename S, typename T = Arithmetic<S>>
DIFFREG_DEVICE WarpedVoxel<T> warp_voxel(const Problem& problem,
                                         const S* moving,  // (*from)
                                         T fixed, T weight, T y, T x, const T* u) {
  const T bad = warp::poison(u[0]) + warp::poison(u[1]);
  const warp::Padding padding =  // of two, as the compiler sees: reflection has no kernel
      problem.padding == warp::Padding::zeros ? warp::Padding::zeros : warp::Padding::border;
  const warp::Neighbours<T> at[D] = {warp::linear(y + u[0], bad, problem.from[0], padding),
                                     warp::linear(x + u[1], bad, problem.from[1], padding)};
  const warp::Corners<D, T> corners = warp::corners_of<D>(moving, problem.from, at);
  WarpedVoxel<T> voxel{corners.value(at), {}, fixed, weight};
  if constexpr (differentiates) {
    voxel.slope[0] = corners.template derivative<0>(at);
    voxel.slope[1] = corners.template derivative<1>(at);
  }
  return voxel;
}

// Sums for the moments of data shifted by values that lie close to the means.
template <typename T>
struct ShiftedSums {
  T warped, fixed;  // the shifts
  T weight = 0, of[5] = {};

  DIFFREG_DEVICE ShiftedSums(T shift_warped, T shift_fixed)
      : warped(shift_warped), fixed(shift_fixed) {}

  DIFFREG_DEVICE void add(const WarpedVoxel<T>& voxel) {
    const T b = counted(voxel.warped - warped, voxel.weight);
    const T a = counted(voxel.fixed - fixed, voxel.weight);
    const T weighted_b = voxel.weight * b, weighted_a = voxel.weight * a;
    weight += voxel.weight;
    of[0] += weighted_b;
    of[1] += weighted_a;
    of[2] += weighted_b * b;
    of[3] += weighted_a * a;
    of[4] += weighted_a * b;
  }
  DIFFREG_DEVICE correlation::PartMoments moments() const {
    const double sums[] = {double(of[0]), double(of[1]), double(of[2]), double(of[3]),
                           double(of[4])};
    return correlation::moments_about(warped, fixed, weight, sums);
  }
};

template <typename T, bool differentiates>
class MeasureColumn {
 public:
  DIFFREG_DEVICE const WarpedVoxel<T>& here() const { return here_; }

  DIFFREG_DEVICE void move_to(const WarpedVoxel<T>& below) {
    before_ = here_;
    here_ = below;
  }

  // Completes row at.y by the one below, and moves there. Returns the measures there, not weighted
  // by the mask, and adds the gradient of row at.y - 1.
  DIFFREG_DEVICE T advance(const Setup<T>& setup, const Sample<T>& sample, const Position& at,
                           const WarpedVoxel<T>& below, T* gradient) {
    T value = 0, to[2] = {0, 0};
    if (setup.level_sets) {
      const T eps[2] = {reload(sample.eps_moving), reload(sample.eps_fixed)};
      const T g[2] = {
          central_difference(before_.warped, below.warped),
          central_difference(shuffle_from_left(here_.warped), shuffle_from_right(here_.warped))};
      const T h[2] = {
          central_difference(before_.fixed, below.fixed),
          central_difference(shuffle_from_left(here_.fixed), shuffle_from_right(here_.fixed))};
      add_level_set<Variant::pls>(setup.mixture[kPls], g, h, eps, value, to);
      add_level_set<Variant::smooth>(setup.mixture[kSmoothPls], g, h, eps, value, to);
      add_level_set<Variant::ngf>(setup.mixture[kNgf], g, h, eps, value, to);
    }
    if (setup.mixture[kSsd] != 0) {
      value += setup.mixture[kSsd] * squared_difference(here_.warped, here_.fixed);
    }
    if constexpr (differentiates) {
      const T to_warped = gather(setup, sample, at, to);
      for (int k = 0; k < D; ++k) gradient[k] += to_warped * before_.slope[k];
    }
    move_to(below);
    return value;
  }

 private:
  template <Variant variant>
  DIFFREG_DEVICE static void add_level_set(T factor, const T* g, const T* h, const T* eps, T& value,
                                           T* to) {
    if (factor == 0) return;
    const parallel_level_sets::Scales<T> scales(variant, eps[0], eps[1]);
    const parallel_level_sets::Voxel<D, T> voxel(g, h, scales);
    value += factor * voxel.value();
    if constexpr (differentiates) {
      const auto slopes = voxel.slopes(factor);
      for (int k = 0; k < 2; ++k) to[k] += slopes.along(g[k], h[k]);
    }
  }

  // The gradient to the warped image of row at.y - 1, whose last part is `to`, the gradient to the
  // image's derivatives in row at.y. Outside the image that counts nothing.
  DIFFREG_DEVICE T gather(const Setup<T>& setup, const Sample<T>& sample, const Position& at,
                          const T* to) {
    const int32_t H = setup.problem.to[0], W = setup.problem.to[1];
    const T measures = reload(sample.measures);
    T sum = direct_;
    if (setup.level_sets) {
      const bool counts = at.inside && at.y >= 0 && at.y < H;
      const T scale = here_.weight * measures;
      const auto weighed = [&](T slope) {
        return counts ? scale * counted(slope, here_.weight) : T(0);
      };
      const T below0 = weighed(to[0]);
      sum += collect(at.y - 1, H, above0_, here0_, below0) +
             collect(at.x, W, shuffle_from_left(here1_), here1_, shuffle_from_right(here1_));
      above0_ = here0_;
      here0_ = below0;
      here1_ = weighed(to[1]);
    }
    T own = 0;
    if (setup.mixture[kSsd] != 0) {
      own = measures * setup.mixture[kSsd] * squared_difference_slope(here_.warped, here_.fixed);
    }
    if (setup.mixture[kNcc] != 0) {
      const T b = here_.warped - reload(sample.mean_warped);
      const T a = here_.fixed - reload(sample.mean_fixed);
      own += reload(sample.other) * (b - a) + reload(sample.rest) * b - reload(sample.offset);
    }
    direct_ = here_.weight * counted(own, here_.weight);
    return sum;
  }

  // What voxel j collects from the slopes of the one before, its own, and the one behind: its own
  // counts at the border alone, and must not bring NaN elsewhere.
  DIFFREG_DEVICE static T collect(int64_t j, int64_t size, T before, T own, T behind) {
    T sum = adjoint_weight<T>(j, j - 1, size) * before + adjoint_weight<T>(j, j + 1, size) * behind;
    const T at_border = adjoint_weight<T>(j, j, size);
    if (at_border != 0) sum += at_border * own;
    return sum;
  }

  WarpedVoxel<T> before_ = {}, here_ = {};  // rows y - 1 and y
  // Gradient to the warped image of row y - 1 by its value, and to its derivatives along axis 0 in
  // rows y - 2 and y - 1 and along axis 1 in row y - 1.
  T direct_ = 0, above0_ = 0, here0_ = 0, here1_ = 0;
};

}  // namespace diffreg::registration_objective
