// The objective and its gradient, each in one pass over the fixed grid: a warp goes down the rows
// of a strip, a lane a column, and keeps what stencils need of the last rows in registers; beside
// it reads a lane by shuffles. The warped image is never stored. Called by
// registration_objective_cuda.cpp.
#include "../common/block_reduce.h"
#include "../common/central_difference.h"
#include "../common/determinant.h"
#include "../common/mask_total.h"
#include "../correlation/part_moments.h"
#include "../parallel_level_sets/parallel_level_sets.h"
#include "registration_objective_cuda.h"

namespace diffreg::registration_objective {
namespace {

using correlation::Moments;
using correlation::PartMoments;
using deformation_energy::Penalty;
using deformation_energy::PenaltyKind;
using deformation_energy::Slopes;
using parallel_level_sets::Variant;

constexpr int kMoments = 5;
// Blocks of a multiprocessor for which registers must do.
template <typename S>
constexpr int kResidentHere = sizeof(Arithmetic<S>) == 8 ? 1 : 2;

template <typename T>
DIFFREG_DEVICE T from_left(T value) {
  return __shfl_up_sync(0xffffffffu, value, 1);
}
template <typename T>
DIFFREG_DEVICE T from_right(T value) {
  return __shfl_down_sync(0xffffffffu, value, 1);
}

// Strips of columns and rows, a warp each, and in a tile those of a block. `reach` lanes at both
// ends of a warp, and as many rows before and behind a strip, are computed for the stencils' sake.
template <int reach>
struct Strips {
  static constexpr int32_t kOwned = 32 - 2 * reach;
  int64_t samples;
  int32_t height, width, rows;

  struct Place {
    int32_t x, y, end;  // first column, rows y .. end - 1
  };

  DIFFREG_HD int64_t across() const { return (width + kOwned - 1) / kOwned; }
  DIFFREG_HD int64_t per_sample() const { return across() * ((height + rows - 1) / rows); }
  DIFFREG_HD int64_t tiles() const { return (per_sample() + kWarps - 1) / kWarps; }
  DIFFREG_HD Place place(int64_t strip) const {
    const int32_t y = static_cast<int32_t>(strip / across()) * rows;
    const int32_t x = static_cast<int32_t>(strip % across()) * kOwned;
    return {x, y, y + rows < height ? y + rows : height};
  }
};

// Short strips where there are few, long ones where they keep a large GPU busy: a strip pays for
// the rows beside it.
template <int reach>
Strips<reach> strips_of(const Problem& problem) {
  constexpr int64_t kEnough = 2048;
  Strips<reach> strips{problem.samples, problem.to[0], problem.to[1], 64};
  while (strips.rows > 8 && strips.samples * strips.per_sample() < kEnough) strips.rows /= 2;
  return strips;
}

// What a kernel is told beside the tensors, in the arithmetic's type.
template <typename T>
struct Setup {
  Problem problem;
  Slopes<T> factor;  // of half the squares, that is, of the differences
  T mixture[kMeasures], threshold;
  bool energies, level_sets;
};

template <typename T>
Setup<T> setup_of(const Problem& problem, bool energies) {
  Setup<T> setup{problem,  Slopes<T>(problem.factor, 0.5, 0.5, 1),
                 {},       static_cast<T>(problem.threshold),
                 energies, false};
  for (int k = 0; k < kMeasures; ++k) setup.mixture[k] = static_cast<T>(problem.mixture[k]);
  for (int k : {kPls, kSmoothPls, kNgf}) setup.level_sets |= problem.mixture[k] != 0;
  return setup;
}

// A lane's sums over the voxels that it owns: the weighted measures and their weights, and the
// three energies.
constexpr int kSums = 5;

template <typename T>
struct Sums {
  T measures = 0, weight = 0, energy[3] = {};
};

// Sums for the moments, about the first voxel that the lane has seen of the strip.
template <typename T>
struct NearSums {
  T warped, fixed, weight = 0, of[5] = {};

  DIFFREG_DEVICE void add(T w, T r, T voxel) {
    const T b = w - warped, a = r - fixed, weighted_b = voxel * b, weighted_a = voxel * a;
    weight += voxel;
    of[0] += weighted_b;
    of[1] += weighted_a;
    of[2] += weighted_b * b;
    of[3] += weighted_a * a;
    of[4] += weighted_a * b;
  }
  DIFFREG_DEVICE PartMoments moments() const {
    const double sums[] = {double(of[0]), double(of[1]), double(of[2]), double(of[3]),
                           double(of[4])};
    return correlation::moments_about(warped, fixed, weight, sums);
  }
};

// What is the same for all voxels of a sample, in shared memory: registers decide how many blocks
// are resident.
template <typename T>
struct Sample {
  bool measured;  // its images are looked at
  T eps_moving, eps_fixed;
  T diffusion, bending, determinant;  // upstream gradients, twice those of squares
  T measures;                         // over the weights and channels
  // Of the correlation: other (b - a) + rest b - offset, which is 0 for equal images. b and a are
  // taken about rounded means; the offset takes off again what that leaves.
  T mean_warped, mean_fixed, other, rest, offset;
};

// A value in shared memory, read anew wherever it is used.
template <typename T>
DIFFREG_DEVICE T anew(const T& value) {
  return *const_cast<const volatile T*>(&value);
}

// The row that a warp has come to, and the lane's column.
struct Place {
  int32_t y, x;
  bool inside;           // the column is one of the image's
  bool has_cell, bends;  // so is the one to its right, so are both beside it
};

// Calls run(psi) for the penalty in use.
template <typename T, typename Run>
DIFFREG_DEVICE void with_penalty(PenaltyKind kind, T threshold, const Run& run) {
  switch (kind) {
    case PenaltyKind::hyperelastic: return run(Penalty<T, PenaltyKind::hyperelastic>{threshold});
    case PenaltyKind::log2: return run(Penalty<T, PenaltyKind::log2>{threshold});
    case PenaltyKind::hinge: return run(Penalty<T, PenaltyKind::hinge>{threshold});
    case PenaltyKind::relu: return run(Penalty<T, PenaltyKind::relu>{threshold});
  }
}

// The energies of one column, and their gradient to it. Every stencil is evaluated once, by the
// lane of its first (or middle) vertex, when its last row has come; what it gives to the columns
// beside it goes there once a row. Beyond the image the border repeats, so that first and mixed
// differences are 0 there.
template <typename T, bool differentiates>
struct EnergyColumn {
  T before[D] = {}, here[D] = {}, right[D] = {};        // rows y - 1 and y, and y to the right
  T closing[D] = {}, open[D] = {}, open_right[D] = {};  // what rows y - 1 and y have got so far

  DIFFREG_DEVICE void move_to(const T* u) {
#pragma unroll
    for (int c = 0; c < D; ++c) {
      before[c] = here[c];
      here[c] = u[c];
      right[c] = from_right(u[c]);
    }
  }

  // Completes the stencils that end in row at.y + 1, and moves there: the energies of those that
  // row at.y starts, and the gradient of row at.y - 1.
  DIFFREG_DEVICE void take(const Setup<T>& setup, const Sample<T>& sample, const Place& at,
                           const T* below, T* energy, T* gradient) {
    const Slopes<T>& factor = setup.factor;
    const int32_t last = setup.problem.to[0] - 1;
    const T diffusion = differentiates ? anew(sample.diffusion) : T(0);
    const T bending = differentiates ? anew(sample.bending) : T(0);
    T below_right[D], next[D], next_right[D], to_left[D];
#pragma unroll
    for (int c = 0; c < D; ++c) {
      below_right[c] = from_right(below[c]);
      const T left = from_left(here[c]);
      const auto add = [&](T difference, T by, T upstream, T& sum) {
        const T slope = by * difference;
        sum += slope * difference;
        return upstream * slope;
      };
      const T first0 = add(below[c] - here[c], factor.first[0][c], diffusion, energy[0]);
      const T first1 = add(right[c] - here[c], factor.first[1][c], diffusion, energy[0]);
      T second0 = 0, second1 = 0;
      if (at.y > 0 && at.y < last) {
        second0 = add(deformation_energy::second_difference(before[c], here[c], below[c]),
                      factor.second[0][c], bending, energy[1]);
      }
      if (at.bends) {
        second1 = add(deformation_energy::second_difference(left, here[c], right[c]),
                      factor.second[1][c], bending, energy[1]);
      }
      const T mixed =
          add(deformation_energy::mixed_difference(here[c], right[c], below[c], below_right[c]),
              factor.mixed[c], bending, energy[1]);
      closing[c] += second0;
      open[c] += mixed - (first0 + first1) - 2 * (second0 + second1);
      open_right[c] += first1 + second1 - mixed;
      to_left[c] = second1;
      next[c] = first0 + second0 - mixed;
      next_right[c] = mixed;
    }
    if (at.y >= 0 && at.y < last && at.has_cell) {
      const T determinant = differentiates ? anew(sample.determinant) : T(0);
      const Cell<T> cell(here, below, right, below_right);
      T corner[4], slope[4];
      cell.determinants(corner);
      with_penalty(setup.problem.penalty, setup.threshold, [&](const auto& psi) {
        energy[2] += factor.corner * ((psi.value(corner[0]) + psi.value(corner[1])) +
                                      (psi.value(corner[2]) + psi.value(corner[3])));
        if constexpr (differentiates) {
#pragma unroll
          for (int k = 0; k < 4; ++k) slope[k] = determinant * psi.slope(corner[k]);
        }
      });
      if (differentiates && determinant != 0) {  // else nothing, not even NaN
        T to[4][D];
        cell.adjoint(slope, to[0], to[1], to[2], to[3]);
#pragma unroll
        for (int c = 0; c < D; ++c) {
          open[c] += to[0][c];
          next[c] += to[1][c];
          open_right[c] += to[2][c];
          next_right[c] += to[3][c];
        }
      }
    }
#pragma unroll
    for (int c = 0; c < D; ++c) {
      if constexpr (differentiates) {
        gradient[c] += closing[c];
        closing[c] = open[c] + from_left(open_right[c]) + from_right(to_left[c]);
        open[c] = next[c];
        open_right[c] = next_right[c];
      }
      before[c] = here[c];
      here[c] = below[c];
      right[c] = below_right[c];
    }
  }
};

// What the measures see of a voxel: the warped image, its derivatives by the displacement, the
// fixed image and the weight.
template <typename T>
struct Seen {
  T warped, slope[D], fixed, weight;
};

// The measures of one column, and their gradient to the displacement.
template <typename T, bool differentiates>
struct MeasureColumn {
  Seen<T> before = {}, here = {};  // rows y - 1 and y
  // Gradient to the warped image of row y - 1, and to its derivatives along both axes there and
  // along axis 0 in row y - 2.
  T direct = 0, along0_above = 0, along0 = 0, along1 = 0;

  DIFFREG_DEVICE void move_to(const Seen<T>& seen) {
    before = here;
    here = seen;
  }

  // Completes row at.y by the one below, and moves there: the measures there, not weighted, and
  // the gradient of row at.y - 1.
  DIFFREG_DEVICE T take(const Setup<T>& setup, const Sample<T>& sample, const Place& at,
                        const Seen<T>& below, T* gradient) {
    const int32_t H = setup.problem.to[0], W = setup.problem.to[1];
    const T measures = differentiates ? anew(sample.measures) : T(0);
    T value = 0, to[2] = {0, 0}, own = 0;
    if (setup.level_sets) {
      const T eps_moving = anew(sample.eps_moving), eps_fixed = anew(sample.eps_fixed);
      const T g[2] = {central_difference(before.warped, below.warped),
                      central_difference(from_left(here.warped), from_right(here.warped))};
      const T h[2] = {central_difference(before.fixed, below.fixed),
                      central_difference(from_left(here.fixed), from_right(here.fixed))};
      add_level_set<Variant::pls>(setup.mixture[kPls], g, h, eps_moving, eps_fixed, value, to);
      add_level_set<Variant::smooth>(setup.mixture[kSmoothPls], g, h, eps_moving, eps_fixed, value,
                                     to);
      add_level_set<Variant::ngf>(setup.mixture[kNgf], g, h, eps_moving, eps_fixed, value, to);
    }
    if (setup.mixture[kSsd] != 0) {
      value += setup.mixture[kSsd] * squared_difference(here.warped, here.fixed);
      own = measures * setup.mixture[kSsd] * squared_difference_slope(here.warped, here.fixed);
    }
    if constexpr (differentiates) {
      if (setup.mixture[kNcc] != 0) {
        const T b = here.warped - anew(sample.mean_warped);
        const T a = here.fixed - anew(sample.mean_fixed);
        own += anew(sample.other) * (b - a) + anew(sample.rest) * b - anew(sample.offset);
      }
      T pull = direct;
      const bool counts = at.inside && at.y >= 0 && at.y < H;
      const T scale = counts ? here.weight * measures : T(0);
      const T above = along0_above, middle = along0;
      along0_above = middle;
      along0 = counts ? scale * to[0] : T(0);
      if (setup.level_sets) {
        pull += gather_adjoint(at.y - 1, H, above, middle, along0);
        pull += gather_adjoint(at.x, W, from_left(along1), along1, from_right(along1));
      }
      along1 = counts ? scale * to[1] : T(0);
      direct = here.weight * own;
      for (int k = 0; k < D; ++k) gradient[k] += pull * before.slope[k];
    }
    move_to(below);
    return value;
  }

 private:
  // What voxel j collects from the slopes of the one before, its own, and the one behind: its own
  // counts at the border alone, and must not bring NaN elsewhere.
  DIFFREG_DEVICE static T gather_adjoint(int32_t j, int32_t size, T before, T own, T behind) {
    T sum = adjoint_weight<T>(j, j - 1, size) * before + adjoint_weight<T>(j, j + 1, size) * behind;
    const T at_border = adjoint_weight<T>(j, j, size);
    if (at_border != 0) sum += at_border * own;
    return sum;
  }

  template <Variant variant>
  DIFFREG_DEVICE static void add_level_set(T factor, const T* g, const T* h, T eps_moving,
                                           T eps_fixed, T& value, T* to) {
    if (factor == 0) return;
    const parallel_level_sets::Voxel<T, variant> voxel(g, h, eps_moving, eps_fixed);
    value += factor * voxel.value();
    if constexpr (differentiates) {
      for (int k = 0; k < 2; ++k) to[k] += factor * voxel.derivative(g[k], h[k]);
    }
  }
};

// A stride that makes 64 bits of a 32-bit index by one instruction.
struct Stride {
  int32_t voxels;
  DIFFREG_DEVICE friend int64_t operator*(int32_t index, Stride stride) {
    return static_cast<int64_t>(index) * stride.voxels;
  }
};

template <bool differentiates, typename S, typename T = Arithmetic<S>>
DIFFREG_DEVICE Seen<T> look(const Problem& problem,
                            const S* moving,  // (*from) of one channel
                            T fixed, T weight, T y, T x, const T* u) {
  const T bad = warp::poison(u[0]) + warp::poison(u[1]);
  const warp::Neighbours<T> at[D] = {warp::linear(y + u[0], bad, problem.from[0], problem.padding),
                                     warp::linear(x + u[1], bad, problem.from[1], problem.padding)};
  const Stride stride[D] = {{problem.from[1]}, {1}};
  const warp::Corners<D, T> corners(Reader<S>{moving}, stride, at);
  Seen<T> seen{corners.value(at), {}, fixed, weight};
  if constexpr (differentiates) {
    seen.slope[0] = corners.template derivative<0>(at);
    seen.slope[1] = corners.template derivative<1>(at);
  }
  return seen;
}

// What a launch works on.
template <typename S, int reach>
struct Task {
  Setup<Arithmetic<S>> setup;
  Strips<reach> strips;
  Images<S> images;
  Arithmetic<S>* gradient;  // (N, D, *to), or null where reach is 1
  Arithmetic<S>* warped;    // (N, C, *to) or null
};

// One channel of a strip, and with the first one the energies.
template <typename S, int reach, typename T = Arithmetic<S>>
DIFFREG_DEVICE void sweep(const Task<S, reach>& task, const Sample<T>& sample, int64_t n, int64_t c,
                          int64_t number, Sums<T>& sums, PartMoments& part) {
  constexpr bool kDifferentiates = reach == 2;
  const Setup<T>& setup = task.setup;
  const Images<S>& images = task.images;
  const auto strip = task.strips.place(number);
  const int32_t H = setup.problem.to[0], W = setup.problem.to[1], lane = threadIdx.x;
  const int64_t voxels = setup.problem.voxels(), plane = n * setup.problem.channels + c;
  const bool energies = setup.energies && c == 0, measured = sample.measured;

  Place at;
  at.x = strip.x - reach + lane;
  at.inside = inside(at.x, W);
  at.has_cell = at.inside && inside(at.x + 1, W);
  at.bends = at.has_cell && inside(at.x - 1, W);
  const bool owns = at.inside && inside(lane - reach, Strips<reach>::kOwned);
  const int32_t column = static_cast<int32_t>(clamped(at.x, W));
  const auto voxel_of = [&](int32_t row) { return static_cast<int64_t>(row) * W + column; };
  const auto within = [&](int32_t row) { return static_cast<int32_t>(clamped(row, H)); };
  const auto read = [&](int32_t row, T* u) {
    const S* field = images.displacement + n * D * voxels + voxel_of(within(row));
    u[0] = load(field);
    u[1] = load(field + voxels);
  };
  const auto look_at = [&](int32_t row, const T* u) {
    const int64_t voxel = voxel_of(within(row));
    const S* moving = images.moving + plane * setup.problem.from[0] * setup.problem.from[1];
    const T fixed = load(images.fixed + plane * voxels + voxel);
    const T weight = images.mask ? load(images.mask + n * voxels + voxel) : T(1);
    return look<kDifferentiates>(setup.problem, moving, fixed, weight, T(within(row)), T(column),
                                 u);
  };

  EnergyColumn<T, kDifferentiates> energy_column;
  MeasureColumn<T, kDifferentiates> measure_column;
  NearSums<T> near{};
  const int32_t first = strip.y - reach, end = strip.end + reach;
  T ahead[D];
  read(first, ahead);
#pragma unroll 1
  for (int32_t row = first; row < end; ++row) {
    const T u[D] = {ahead[0], ahead[1]};
    if (row + 1 < end) read(row + 1, ahead);  // a row before it is needed
    Seen<T> seen{};
    if (measured) seen = look_at(row, u);
    if (row < first + 2) {
      energy_column.move_to(u);
      measure_column.move_to(seen);
      near.warped = seen.warped;
      near.fixed = seen.fixed;
      continue;
    }
    at.y = row - 1;
    const bool counts = at.y >= strip.y && at.y < strip.end;
    T gradient[D] = {};
    if (measured) {
      const Seen<T> here = measure_column.here;
      const T value = measure_column.take(setup, sample, at, seen, gradient);
      if (counts) {
        sums.measures += here.weight * value;
        sums.weight += here.weight;
        if (!kDifferentiates && setup.mixture[kNcc] != 0) {
          near.add(here.warped, here.fixed, here.weight);
        }
        if (task.warped && owns) {
          store(task.warped + plane * voxels + voxel_of(at.y), here.warped);
        }
      }
    }
    if (energies) {
      T energy[3] = {};
      energy_column.take(setup, sample, at, u, energy, gradient);
      if (counts) {
        for (int k = 0; k < 3; ++k) sums.energy[k] += energy[k];
      }
    }
    if (kDifferentiates && at.y > strip.y && owns) {
      T* to = task.gradient + n * D * voxels + voxel_of(at.y - 1);
#pragma unroll
      for (int k = 0; k < D; ++k, to += voxels) {
        store(to, c == 0 ? gradient[k] : load(to) + gradient[k]);
      }
    }
  }
  if (!owns) sums = {};
  if (!kDifferentiates && owns && setup.mixture[kNcc] != 0) part.add(near.moments());
}

// All channels of the strips of a tile, and the sums of each thread.
template <typename S, int reach, typename T = Arithmetic<S>>
DIFFREG_DEVICE void sweep_tile(const Task<S, reach>& task, const Sample<T>& sample, int64_t n,
                               int64_t tile, double (&values)[kSums], PartMoments& part) {
  const int64_t strip = tile * kWarps + threadIdx.y;
  Sums<T> sums;
  if (strip < task.strips.per_sample()) {
    const int64_t channels = sample.measured ? task.setup.problem.channels : 1;
    for (int64_t c = 0; c < channels; ++c) {
      sweep(task, sample, n, c, strip, sums, part);
    }
  }
  values[0] = sums.measures;
  values[1] = sums.weight;
  for (int k = 0; k < 3; ++k) values[2 + k] = sums.energy[k];
}

// Moments as numbers, for what moves these.
constexpr int kParts = 6;

DIFFREG_DEVICE void take_apart(const PartMoments& part, double* of) {
  of[0] = part.weight;
  of[1] = part.mean_warped;
  of[2] = part.mean_fixed;
  of[3] = part.warped_warped;
  of[4] = part.fixed_fixed;
  of[5] = part.product;
}
DIFFREG_DEVICE PartMoments put_together(const double* of) {
  return {of[0], of[1], of[2], of[3], of[4], of[5]};
}

// Puts the moments of all threads of the block together, in a fixed order; thread 0 holds them.
DIFFREG_DEVICE void reduce_block(PartMoments& part) {
  using Values = WarpValues<kParts>;
  DIFFREG_SHARED(Values, warps);
  double of[kParts];
  for (int offset = 16; offset > 0; offset /= 2) {
    take_apart(part, of);
    for (int k = 0; k < kParts; ++k) of[k] = __shfl_down_sync(0xffffffffu, of[k], offset);
    part.add(put_together(of));
  }
  take_apart(part, of);
  __syncthreads();  // the last reduction's values have been read
  if (threadIdx.x == 0) {
    for (int k = 0; k < kParts; ++k) warps.of[k][threadIdx.y] = of[k];
  }
  __syncthreads();
  if (thread_index() != 0) return;
  for (int warp = 1; warp < kWarps; ++warp) {
    for (int k = 0; k < kParts; ++k) of[k] = warps.of[k][warp];
    part.add(put_together(of));
  }
}

// What the gradient needs of the whole image.
struct Summary {
  const double* weight;   // (N), of a channel; null: the number of voxels
  const double* moments;  // (N, 5), or null where there is no correlation
};

DIFFREG_DEVICE Moments moments_of(const double* m) {  // (5)
  return {load(m), load(m + 1), load(m + 2), load(m + 3), load(m + 4)};
}

// The terms of a sample from its sums: the measures, their weights and the energies.
template <typename T>
DIFFREG_DEVICE void finish(const Problem& problem, const Terms<T>& terms, int64_t n,
                           const double* sums, double correlation_value) {
  const double per = sums[1] == 0 ? 0 : 1 / sums[1];
  double similarity = sums[0] * per;
  if (problem.mixture[kNcc] != 0) similarity += problem.mixture[kNcc] * correlation_value;
  const Weights& weights = problem.weights;
  store(terms.total + n,
        static_cast<T>(weights.similarity * similarity + weights.diffusion * sums[2] +
                       weights.bending * sums[3] + weights.determinant * sums[4]));
  store(terms.similarity + n, static_cast<T>(similarity));
  store(terms.diffusion + n, static_cast<T>(sums[2]));
  store(terms.bending + n, static_cast<T>(sums[3]));
  store(terms.determinant + n, static_cast<T>(sums[4]));
}

// What each term's upstream gradient and the total's make of its weight; in the forward pass the
// total's is 1, and there are no others.
template <typename T>
DIFFREG_DEVICE Weights weights_of(const Problem& problem, const Upstream<T>& upstream, bool valued,
                                  int64_t n) {
  const auto given = [&](const T* gradient) { return gradient ? double(load(gradient + n)) : 0.0; };
  const double total = valued ? 1.0 : given(upstream.total);
  const Weights& weights = problem.weights;
  return {weights.similarity * total + given(upstream.similarity),
          weights.diffusion * total + given(upstream.diffusion),
          weights.bending * total + given(upstream.bending),
          weights.determinant * total + given(upstream.determinant)};
}

// Without `valued` a similarity of weight 0 gives nothing, not even NaN.
template <typename S, int reach, typename T = Arithmetic<S>>
DIFFREG_DEVICE void fill(Sample<T>& sample, const Task<S, reach>& task, const Weights& weights,
                         const Summary& summary, bool valued, int64_t n) {
  const Problem& problem = task.setup.problem;
  sample = {};
  sample.measured = problem.channels > 0 && (valued || weights.similarity != 0);
  sample.diffusion = static_cast<T>(2 * weights.diffusion);
  sample.bending = static_cast<T>(2 * weights.bending);
  sample.determinant = static_cast<T>(weights.determinant * problem.factor.corner);
  if (!sample.measured) return;
  if (task.setup.level_sets) {
    sample.eps_moving = load(task.images.eps_moving + n);
    sample.eps_fixed = load(task.images.eps_fixed + n);
  }
  if (reach == 1) return;
  sample.measures = static_cast<T>(
      weights.similarity * per_voxel(summary.weight, n, problem.voxels()) / problem.channels);
  if (!summary.moments) return;
  const Moments moments = moments_of(summary.moments + n * kMoments);
  const double upstream = weights.similarity * problem.mixture[kNcc];
  const double own = upstream * moments.slope_by_own(moments.warped_warped);
  const double other = upstream * moments.slope_by_other();
  sample.mean_warped = static_cast<T>(moments.mean_warped);
  sample.mean_fixed = static_cast<T>(moments.mean_fixed);
  sample.other = static_cast<T>(other);
  sample.rest = static_cast<T>(own - other);
  sample.offset = static_cast<T>(own * (moments.mean_warped - sample.mean_warped) -
                                 other * (moments.mean_fixed - sample.mean_fixed));
}

// The terms, or, where these are null, the summary alone.
template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentHere<S>)
    forward_kernel(Task<S, 1> task, Reduction reduction, Terms<Arithmetic<S>> terms,
                   double* weight,     // (N)
                   double* moments) {  // (N, 5)
  constexpr int kLeft = kSums + kParts;
  using Shared = Sample<Arithmetic<S>>;
  DIFFREG_SHARED(Shared, sample);
  const Problem& problem = task.setup.problem;
  const int64_t tiles = task.strips.tiles();
  const bool correlated = problem.mixture[kNcc] != 0;
  for (int64_t index = blockIdx.x; index < problem.samples * tiles; index += gridDim.x) {
    const int64_t n = index / tiles;
    double sums[kSums], left[kLeft];
    PartMoments part;
    if (thread_index() == 0) fill(sample, task, Weights{}, Summary{}, true, n);
    __syncthreads();
    sweep_tile(task, sample, n, index % tiles, sums, part);
    diffreg::reduce_block(sums);  // its barriers also part this tile from the next
    if (correlated) reduce_block(part);
    for (int k = 0; k < kSums; ++k) left[k] = sums[k];
    take_apart(part, left + kSums);
    leave(reduction, left, n, index % tiles, tiles);
    if (!comes_last(reduction.done + n, tiles)) continue;
    const double* partials = reduction.partials + n * kLeft * tiles;
    for (int k = 0; k < kSums; ++k) sums[k] = strided(partials + k * tiles, tiles);
    diffreg::reduce_block(sums);
    part = {};
    if (correlated) {
      for (int64_t tile = thread_index(); tile < tiles; tile += kThreads) {
        double of[kParts];
        for (int k = 0; k < kParts; ++k) of[k] = load(partials + (kSums + k) * tiles + tile);
        part.add(put_together(of));
      }
      reduce_block(part);
    }
    if (thread_index() != 0) continue;
    const Moments whole = part.moments(problem.epsilon);
    if (terms.total) {
      finish(problem, terms, n, sums, whole.value());
      continue;
    }
    store(weight + n, problem.channels > 0 ? sums[1] / double(problem.channels) : 0);
    const double all[kMoments] = {whole.mean_warped, whole.mean_fixed, whole.warped_warped,
                                  whole.fixed_fixed, whole.product};
    for (int k = 0; k < kMoments; ++k) store(moments + n * kMoments + k, all[k]);
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentHere<S>)
    gradient_kernel(Task<S, 2> task, Upstream<Arithmetic<S>> upstream, Summary summary,
                    Reduction reduction, Terms<Arithmetic<S>> terms) {
  using Shared = Sample<Arithmetic<S>>;
  DIFFREG_SHARED(Shared, sample);
  const Problem& problem = task.setup.problem;
  const int64_t tiles = task.strips.tiles();
  const bool valued = terms.total;
  for (int64_t index = blockIdx.x; index < problem.samples * tiles; index += gridDim.x) {
    const int64_t n = index / tiles;
    __syncthreads();  // the last tile's sample has been read
    if (thread_index() == 0) {
      fill(sample, task, weights_of(problem, upstream, valued, n), summary, valued, n);
    }
    __syncthreads();
    double sums[kSums];
    PartMoments none;
    sweep_tile(task, sample, n, index % tiles, sums, none);
    if (!valued) continue;
    reduce_tiles(reduction, sums, n, index % tiles, tiles, [&](const double* total) {
      const bool correlated = problem.mixture[kNcc] != 0;
      finish(problem, terms, n, total,
             correlated ? moments_of(summary.moments + n * kMoments).value() : 0);
    });
  }
}

int64_t forward_doubles(const Problem& problem) {
  const int64_t tiles = strips_of<1>(problem).tiles();
  return reduction_doubles(problem.samples, kSums + kParts, tiles);
}

template <typename S>
void launch_sums(const Problem& problem, const Images<S>& images, const Terms<Arithmetic<S>>& terms,
                 Arithmetic<S>* warped, double* weight, double* moments, double* workspace,
                 void* stream) {
  const Task<S, 1> task{setup_of<Arithmetic<S>>(problem, terms.total), strips_of<1>(problem),
                        images, nullptr, warped};
  const int64_t tiles = task.strips.tiles();
  const Reduction reduction =
      make_reduction(workspace, problem.samples, kSums + kParts, tiles, stream);
  DIFFREG_LAUNCH(forward_kernel<S>, problem.samples * tiles, block_shape(), stream, task, reduction,
                 terms, weight, moments);
}

// The moments or, where there is no correlation, the mask's weights, in a pass of their own: both
// are those of the whole image.
template <typename S>
Summary launch_summary(const Problem& problem, const Images<S>& images, double* results,
                       double* workspace, void* stream) {
  if (problem.mixture[kNcc] == 0) {
    return {launch_mask_total(problem.samples, problem.voxels(), images.mask, workspace, stream),
            nullptr};
  }
  Problem alone = problem;
  for (int k = 0; k < kMeasures; ++k) {
    if (k != kNcc) alone.mixture[k] = 0;
  }
  double* moments = results + problem.samples;
  launch_sums(alone, images, Terms<Arithmetic<S>>{}, static_cast<Arithmetic<S>*>(nullptr), results,
              moments, workspace, stream);
  return {results, moments};
}

}  // namespace

int64_t workspace_doubles(const Problem& problem) {
  const int64_t tiles = strips_of<2>(problem).tiles();
  return problem.samples * (1 + kMoments) + forward_doubles(problem) +
         mask_total_doubles(problem.samples, problem.voxels()) +
         reduction_doubles(problem.samples, kSums, tiles);
}

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images,
                    const Terms<Arithmetic<S>>& terms, Arithmetic<S>* warped, double* workspace,
                    void* stream) {
  launch_sums(problem, images, terms, warped, nullptr, nullptr, workspace, stream);
}

template <typename S>
void launch_gradient(const Problem& problem, const Images<S>& images,
                     const Upstream<Arithmetic<S>>& upstream, const Terms<Arithmetic<S>>& terms,
                     Arithmetic<S>* gradient, Arithmetic<S>* warped, double* workspace,
                     void* stream) {
  const Task<S, 2> task{setup_of<Arithmetic<S>>(problem, true), strips_of<2>(problem), images,
                        gradient, warped};
  const int64_t tiles = task.strips.tiles();
  const bool measured = terms.total || upstream.total || upstream.similarity;
  double* scratch = workspace + problem.samples * (1 + kMoments);
  Summary summary{nullptr, nullptr};
  if (measured) summary = launch_summary(problem, images, workspace, scratch, stream);
  Reduction reduction{};
  if (terms.total) {
    scratch += forward_doubles(problem) + mask_total_doubles(problem.samples, problem.voxels());
    reduction = make_reduction(scratch, problem.samples, kSums, tiles, stream);
  }
  DIFFREG_LAUNCH(gradient_kernel<S>, problem.samples * tiles, block_shape(), stream, task, upstream,
                 summary, reduction, terms);
}

#define DIFFREG_INSTANCES(S)                                                                      \
  template void launch_forward(const Problem&, const Images<S>&, const Terms<Arithmetic<S>>&,     \
                               Arithmetic<S>*, double*, void*);                                   \
  template void launch_gradient(const Problem&, const Images<S>&, const Upstream<Arithmetic<S>>&, \
                                const Terms<Arithmetic<S>>&, Arithmetic<S>*, Arithmetic<S>*,      \
                                double*, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::registration_objective
