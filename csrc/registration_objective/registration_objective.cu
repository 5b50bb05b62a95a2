// The objective and its gradient, each in one pass over the fixed grid: a warp marches down the
// rows of a strip, a lane a column, and keeps what stencils need of the last rows in registers;
// what they need of the columns beside comes by shuffles. The warped image is never stored.
#include "../common/block_reduce.h"
#include "../common/mask_total.h"
#include "energy_column.h"
#include "measure_column.h"

namespace diffreg::registration_objective {
namespace {

using correlation::kMoments;
using correlation::Moments;
using correlation::PartMoments;

// Blocks of a multiprocessor for which registers must do: what fits without spilling. The gradient
// of half types needs two more than the 128 of a second one.
template <typename S>
constexpr int kResidentHere = sizeof(Arithmetic<S>) == 8 ? 1 : 2;

// What a launch works on.
template <typename S, int halo>
struct Task {
  Setup<Arithmetic<S>> setup;
  Strips<halo> strips;
  Images<S> images;
  Arithmetic<S>* gradient;  // (N, D, *to), or null where halo is 1
  Arithmetic<S>* warped;    // (N, C, *to) or null
};

template <int halo>
DIFFREG_DEVICE Position position_of(const typename Strips<halo>::Place& strip, int32_t width) {
  const int32_t lane = threadIdx.x;
  Position at;
  at.x = strip.x - halo + lane;
  at.inside = inside(at.x, width);
  at.has_cell = at.inside && inside(at.x + 1, width);
  at.bends = at.has_cell && inside(at.x - 1, width);
  at.owned = at.inside && inside(lane - halo, Strips<halo>::kOwned);
  return at;
}

// Reads a lane's column, or the one at the border where its own lies outside.
template <typename S, bool differentiates>
struct ColumnReader {
  using T = Arithmetic<S>;
  const Problem& problem;
  int32_t column;
  const S *field, *fixed, *moving;
  const T* mask;
  bool measured;

  DIFFREG_DEVICE ColumnReader(const Problem& task, const Images<S>& images, int64_t n, int64_t c,
                              int32_t x, bool reads_images)
      : problem(task), column(clamped(x, task.to[1])), measured(reads_images) {
    const int64_t voxels = task.voxels(), plane = n * task.channels + c;
    field = images.displacement + n * D * voxels + column;
    fixed = images.fixed + plane * voxels + column;
    moving = images.moving + plane * task.from[0] * task.from[1];
    mask = images.mask ? images.mask + n * voxels + column : nullptr;
  }

  DIFFREG_DEVICE void displacement(int32_t row, T* u) const {
    const int32_t y = clamped(row, problem.to[0]);
    const S* const at = field + static_cast<int64_t>(y) * problem.to[1];
    u[0] = load(at);
    u[1] = load(at + problem.voxels());
  }
  DIFFREG_DEVICE WarpedVoxel<T> voxel(int32_t row, const T* u) const {
    if (!measured) return {};
    const int32_t y = clamped(row, problem.to[0]);
    const int64_t offset = static_cast<int64_t>(y) * problem.to[1];
    const T weight = mask ? load(mask + offset) : T(1);
    return warp_voxel<differentiates>(problem, moving, load(fixed + offset), weight, T(y),
                                      T(column), u);
  }
};

// A lane's sums over the voxels that it owns: the weighted measures and their weights, and the
// three energies.
constexpr int kSums = 5;

template <typename T>
struct Sums {
  T measures = 0, weight = 0, energy[3] = {};
};

// One channel of a strip, and with the first one the energies.
template <typename S, int halo, typename T = Arithmetic<S>>
DIFFREG_DEVICE void sweep(const Task<S, halo>& task, const Sample<T>& sample, int64_t n, int64_t c,
                          int64_t number, Sums<T>& sums, PartMoments& part) {
  constexpr bool kDifferentiates = halo == 2;
  const Setup<T>& setup = task.setup;
  const auto strip = task.strips.place(number);
  const int32_t W = setup.problem.to[1], first = strip.y - halo, end = strip.end + halo;
  const int64_t voxels = setup.problem.voxels();
  const bool energies = setup.energies && c == 0, measured = sample.measured;
  Position at = position_of<halo>(strip, W);
  const ColumnReader<S, kDifferentiates> reader(setup.problem, task.images, n, c, at.x, measured);
  EnergyColumn<T, kDifferentiates> energy_column;
  MeasureColumn<T, kDifferentiates> measure_column;
  // The warped image is stored as it is: what a weight of 0 hides, it hides from the measures.
  const auto voxel_at = [&](int32_t row, const T* u) {
    WarpedVoxel<T> voxel = reader.voxel(row, u);
    if (task.warped && measured && at.owned && row >= strip.y && row < strip.end) {
      const int64_t plane = n * setup.problem.channels + c;
      store(task.warped + plane * voxels + static_cast<int64_t>(row) * W + at.x, voxel.warped);
    }
    voxel.hide();
    return voxel;
  };
  T next[D];  // prefetched, a row before it is needed
  reader.displacement(first, next);
#pragma unroll 1
  for (int32_t row = first; row < first + 2; ++row) {
    const T u[D] = {next[0], next[1]};
    reader.displacement(row + 1, next);
    energy_column.move_to(u);
    measure_column.move_to(voxel_at(row, u));
  }
  ShiftedSums<T> shifted(measure_column.here().warped, measure_column.here().fixed);
#pragma unroll 1
  for (int32_t row = first + 2; row < end; ++row) {
    const T u[D] = {next[0], next[1]};
    if (row + 1 < end) reader.displacement(row + 1, next);
    at.y = row - 1;
    const bool counts = at.y >= strip.y && at.y < strip.end;
    T gradient[D] = {};
    if (measured) {
      const WarpedVoxel<T> below = voxel_at(row, u), here = measure_column.here();
      const T value = measure_column.advance(setup, sample, at, below, gradient);
      sums.measures += counts ? here.weight * counted(value, here.weight) : T(0);
      sums.weight += counts ? here.weight : T(0);
      // Without a gradient all rows that come here count.
      if (!kDifferentiates && setup.mixture[kNcc] != 0) shifted.add(here);
    }
    if (energies) {
      T energy[3] = {};
      energy_column.advance(setup, sample, at, u, energy, gradient);
      for (int k = 0; k < 3; ++k) sums.energy[k] += counts ? energy[k] : T(0);
    }
    if (!kDifferentiates || at.y <= strip.y || !at.owned) continue;
    T* to = task.gradient + n * D * voxels + static_cast<int64_t>(at.y - 1) * W + at.x;
#pragma unroll
    for (int k = 0; k < D; ++k, to += voxels) {
      store(to, c == 0 ? gradient[k] : load(to) + gradient[k]);
    }
  }
  if (!at.owned) {
    sums = {};
  } else if (!kDifferentiates && setup.mixture[kNcc] != 0) {
    part.add(shifted.moments());
  }
}

// All channels of the strips of a tile, and the sums of each thread.
template <typename S, int halo, typename T = Arithmetic<S>>
DIFFREG_DEVICE void sweep_tile(const Task<S, halo>& task, const Sample<T>& sample, int64_t n,
                               int64_t tile, double (&values)[kSums], PartMoments& part) {
  const int64_t strip = tile * kWarps + warp_uniform(threadIdx.y);
  Sums<T> sums;
  if (strip < task.strips.per_sample()) {
    const int64_t channels = sample.measured ? task.setup.problem.channels : 1;
    for (int64_t c = 0; c < channels; ++c) sweep(task, sample, n, c, strip, sums, part);
  }
  values[0] = sums.measures;
  values[1] = sums.weight;
  for (int k = 0; k < 3; ++k) values[2 + k] = sums.energy[k];
}

// Moments as an array, for shuffles, shared memory and partial sums.
constexpr int kParts = 6;

DIFFREG_DEVICE void pack(const PartMoments& part, double* of) {
  of[0] = part.weight;
  of[1] = part.mean_warped;
  of[2] = part.mean_fixed;
  of[3] = part.warped_warped;
  of[4] = part.fixed_fixed;
  of[5] = part.product;
}
DIFFREG_DEVICE PartMoments unpack(const double* of) {
  return {of[0], of[1], of[2], of[3], of[4], of[5]};
}

// Merges the moments of all threads of the block, in a fixed order; thread 0 holds them.
DIFFREG_DEVICE void reduce_block(PartMoments& part) {
  using Values = WarpValues<kParts>;
  DIFFREG_SHARED(Values, warps);
  double of[kParts];
  for (int offset = 16; offset > 0; offset /= 2) {
    pack(part, of);
    for (int k = 0; k < kParts; ++k) of[k] = shuffle_from_right(of[k], offset);
    part.add(unpack(of));
  }
  pack(part, of);
  // The last reduction's values have been read: other barriers were between.
  if (threadIdx.x == 0) {
    for (int k = 0; k < kParts; ++k) warps.of[k][threadIdx.y] = of[k];
  }
  __syncthreads();
  if (thread_index() != 0) return;
  for (int warp = 1; warp < kWarps; ++warp) {
    for (int k = 0; k < kParts; ++k) of[k] = warps.of[k][warp];
    part.add(unpack(of));
  }
}

// This thread's part of the sums over the tiles of a sample: a block-stride loop. Not unrolled:
// indices of more tiles at once would be kept in registers throughout the sweep.
DIFFREG_DEVICE void block_stride_reduce(const double* partials,  // (kSums, tiles)
                                        int64_t tiles, double (&sums)[kSums]) {
  for (int k = 0; k < kSums; ++k) sums[k] = 0;
#pragma unroll 1
  for (int64_t tile = thread_index(); tile < tiles; tile += kThreads) {
    for (int k = 0; k < kSums; ++k) sums[k] += load(partials + k * tiles + tile);
  }
}
DIFFREG_DEVICE void block_stride_reduce(const double* partials,  // (kParts, tiles)
                                        int64_t tiles, PartMoments& part) {
  part = {};
#pragma unroll 1
  for (int64_t tile = thread_index(); tile < tiles; tile += kThreads) {
    double of[kParts];
    for (int k = 0; k < kParts; ++k) of[k] = load(partials + k * tiles + tile);
    part.add(unpack(of));
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
template <typename S, int halo, typename T = Arithmetic<S>>
DIFFREG_DEVICE void fill(Sample<T>& sample, const Task<S, halo>& task, const Weights& weights,
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
  if (halo == 1) return;
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
  constexpr int kPartials = kSums + kParts;
  using Shared = Sample<Arithmetic<S>>;
  DIFFREG_SHARED(Shared, sample);
  const Problem& problem = task.setup.problem;
  const int64_t tiles = task.strips.tiles();
  const bool correlated = problem.mixture[kNcc] != 0;
  for (int64_t index = blockIdx.x; index < problem.samples * tiles; index += gridDim.x) {
    const int64_t n = index / tiles;
    double sums[kSums], tile_sums[kPartials];
    PartMoments part;
    if (thread_index() == 0) fill(sample, task, Weights{}, Summary{}, true, n);
    __syncthreads();
    sweep_tile(task, sample, n, index % tiles, sums, part);
    diffreg::reduce_block(sums);  // its barriers also part this tile from the next
    if (correlated) reduce_block(part);
    for (int k = 0; k < kSums; ++k) tile_sums[k] = sums[k];
    pack(part, tile_sums + kSums);
    store_partials(reduction, tile_sums, n, index % tiles, tiles);
    if (!is_last_block(reduction.tickets + n, tiles)) continue;
    const double* partials = reduction.partials + n * kPartials * tiles;
    block_stride_reduce(partials, tiles, sums);
    diffreg::reduce_block(sums);
    if (correlated) {
      block_stride_reduce(partials + kSums * tiles, tiles, part);
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
__global__ void __launch_bounds__(kThreads, sizeof(S) == 4 ? 2 : 1)
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
    diffreg::reduce_block(sums);
    store_partials(reduction, sums, n, index % tiles, tiles);
    if (!is_last_block(reduction.tickets + n, tiles)) continue;
    block_stride_reduce(reduction.partials + n * kSums * tiles, tiles, sums);
    diffreg::reduce_block(sums);
    if (thread_index() != 0) continue;
    const bool correlated = problem.mixture[kNcc] != 0;
    finish(problem, terms, n, sums,
           correlated ? moments_of(summary.moments + n * kMoments).value() : 0);
  }
}

int64_t forward_doubles(const Problem& problem) {
  const int64_t tiles = choose_strips<1>(problem).tiles();
  return reduction_doubles(problem.samples, kSums + kParts, tiles);
}

template <typename S>
void launch_sums(const Problem& problem, const Images<S>& images, const Terms<Arithmetic<S>>& terms,
                 Arithmetic<S>* warped, double* weight, double* moments, double* workspace,
                 void* stream) {
  const Task<S, 1> task{setup_of<Arithmetic<S>>(problem, terms.total), choose_strips<1>(problem),
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
  const int64_t tiles = choose_strips<2>(problem).tiles();
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
  const Task<S, 2> task{setup_of<Arithmetic<S>>(problem, true), choose_strips<2>(problem), images,
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
