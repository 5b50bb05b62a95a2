// 1 - cc in one pass over the images: every tile takes its moments about its own means, and the
// tiles' moments are put together exactly; the gradient is affine in both images. In double.
// Called by correlation_cuda.cpp.
#include "../common/block_reduce.h"
#include "correlation_cuda.h"

namespace diffreg::correlation {
namespace {

constexpr int kEach = 8;  // voxels of a thread, kept in registers between the two sums
constexpr int64_t kChunk = kEach * kThreads;

DIFFREG_HD int64_t chunks(const Problem& problem) { return (problem.voxels + kChunk - 1) / kChunk; }

struct Means {
  double warped, fixed;
};

struct Totals {
  double of[3];
};

// Sums three values over the block, and tells every thread: weight, warped, fixed.
DIFFREG_DEVICE Totals sum_for_all(const double (&values)[3]) {
  DIFFREG_SHARED(Totals, shared);
  double sums[3] = {values[0], values[1], values[2]};
  reduce_block(sums);
  if (thread_index() == 0) shared = {{sums[0], sums[1], sums[2]}};
  __syncthreads();
  return shared;
}

DIFFREG_DEVICE Means means_of(const Totals& totals) {
  if (totals.of[0] == 0) return {0, 0};
  return {totals.of[1] / totals.of[0], totals.of[2] / totals.of[0]};
}

// Where a block works: a chunk of a plane, of which a thread takes a voxel every kThreads.
struct Place {
  int64_t n, plane, within;  // within: number of the chunk in its sample
  int64_t first;             // the thread's first voxel, in its plane
  int32_t left;              // voxels of the plane from there on, of the chunk at the most

  DIFFREG_DEVICE Place(const Problem& problem, int64_t index, int64_t chunks) {
    plane = index / chunks;
    n = plane / problem.channels;
    within = index - n * problem.channels * chunks;
    first = (index - plane * chunks) * kChunk + thread_index();
    left = static_cast<int32_t>(problem.voxels - first < kChunk ? problem.voxels - first : kChunk);
  }
  DIFFREG_DEVICE bool has(int k) const { return inside(k * kThreads, left); }
};

// The voxels that this thread works on, asked for together.
template <typename S>
struct Voxels {
  Arithmetic<S> warped[kEach], fixed[kEach], weight[kEach];

  DIFFREG_DEVICE Voxels(const Problem& problem, const Images<S>& images, const Place& place) {
    const int64_t at = place.plane * problem.voxels + place.first;
    const Arithmetic<S>* mask =
        images.mask ? images.mask + place.n * problem.voxels + place.first : nullptr;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const bool has = place.has(k);
      warped[k] = has ? load(images.warped + at + k * kThreads) : 0;
      fixed[k] = has ? load(images.fixed + at + k * kThreads) : 0;
      weight[k] = has ? (mask ? load(mask + k * kThreads) : 1) : 0;
    }
  }

  DIFFREG_DEVICE void add_raw(double (&sums)[3]) const {
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      sums[0] += double(weight[k]);
      sums[1] += double(weight[k]) * warped[k];
      sums[2] += double(weight[k]) * fixed[k];
    }
  }
  DIFFREG_DEVICE void add_centred(const Means& mean, double (&sums)[3]) const {
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const double b = warped[k] - mean.warped, a = fixed[k] - mean.fixed;
      sums[0] += weight[k] * (b * b);
      sums[1] += weight[k] * (a * a);
      sums[2] += weight[k] * (a * b);
    }
  }
};

// Moments of a sample from those of its tiles: sums about each tile's means, and the tiles' means
// about the sample's. partials: (6, tiles): weight, warped, fixed, then the centred sums.
DIFFREG_DEVICE Moments put_together(const Problem& problem, const double* partials, int64_t tiles) {
  double raw[3], centred[3] = {0, 0, 0};
  for (int k = 0; k < 3; ++k) raw[k] = strided(partials + k * tiles, tiles);
  const Totals totals = sum_for_all(raw);
  const Means mean = means_of(totals);
  for (int64_t tile = thread_index(); tile < tiles; tile += kThreads) {
    const auto at = [&](int k) { return load(partials + k * tiles + tile); };
    const Means own = means_of({{at(0), at(1), at(2)}});
    const double b = own.warped - mean.warped, a = own.fixed - mean.fixed, weight = at(0);
    centred[0] += at(3) + weight * (b * b);
    centred[1] += at(4) + weight * (a * a);
    centred[2] += at(5) + weight * (a * b);
  }
  reduce_block(centred);
  const auto centred_or_0 = [&](double sum, double mean_of_image) {
    const double squares = sum + totals.of[0] * mean_of_image * mean_of_image;
    return Moments::without_rounding(sum, squares, problem.epsilon);
  };
  return {mean.warped, mean.fixed, centred_or_0(centred[0], mean.warped),
          centred_or_0(centred[1], mean.fixed), centred[2]};
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    forward_kernel(Problem problem, Images<S> images, Reduction reduction,
                   Arithmetic<S>* value,                                          // (N)
                   double* moments) {                                             // (N, 5)
  const int64_t of_plane = chunks(problem), tiles = problem.channels * of_plane;  // of a sample
  for (int64_t index = blockIdx.x; index < problem.samples * tiles; index += gridDim.x) {
    const Place place(problem, index, of_plane);
    const int64_t n = place.n;
    const Voxels<S> voxels(problem, images, place);
    double raw[3] = {0, 0, 0}, centred[3] = {0, 0, 0};
    voxels.add_raw(raw);
    const Totals totals = sum_for_all(raw);
    voxels.add_centred(means_of(totals), centred);
    reduce_block(centred);
    const double left[6] = {totals.of[0], totals.of[1], totals.of[2],
                            centred[0],   centred[1],   centred[2]};
    leave(reduction, left, n, place.within, tiles);
    if (!comes_last(reduction.done + n, tiles)) continue;
    const Moments whole = put_together(problem, reduction.partials + n * 6 * tiles, tiles);
    if (thread_index() != 0) continue;
    const double all[kMoments] = {whole.mean_warped, whole.mean_fixed, whole.warped_warped,
                                  whole.fixed_fixed, whole.product};
    for (int k = 0; k < kMoments; ++k) store(moments + n * kMoments + k, all[k]);
    store(value + n, static_cast<Arithmetic<S>>(whole.value()));
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    backward_kernel(Problem problem, Images<S> images,
                    const Arithmetic<S>* gradient,  // (N)
                    const double* moments,          // (N, 5)
                    S* grad_warped,                 // (N, C, *S) or null
                    S* grad_fixed) {                // (N, C, *S) or null
  using T = Arithmetic<S>;
  const int64_t of_plane = chunks(problem), planes = problem.samples * problem.channels;
  for (int64_t index = blockIdx.x; index < planes * of_plane; index += gridDim.x) {
    const Place place(problem, index, of_plane);
    const Voxels<S> voxels(problem, images, place);
    const double* m = moments + place.n * kMoments;
    const Moments moment{load(m), load(m + 1), load(m + 2), load(m + 3), load(m + 4)};
    const double upstream = load(gradient + place.n), other = upstream * moment.slope_by_other();
    const double own_warped = upstream * moment.slope_by_own(moment.warped_warped);
    const double own_fixed = upstream * moment.slope_by_own(moment.fixed_fixed);
    const int64_t at = place.plane * problem.voxels + place.first;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      if (!place.has(k)) continue;
      const double b = voxels.warped[k] - moment.mean_warped;
      const double a = voxels.fixed[k] - moment.mean_fixed, weight = voxels.weight[k];
      if (grad_warped) {
        store(grad_warped + at + k * kThreads,
              static_cast<T>(weight * (own_warped * b - other * a)));
      }
      if (grad_fixed) {
        store(grad_fixed + at + k * kThreads, static_cast<T>(weight * (own_fixed * a - other * b)));
      }
    }
  }
}

}  // namespace

int64_t forward_doubles(const Problem& problem) {
  return reduction_doubles(problem.samples, 6, problem.channels * chunks(problem));
}

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images, double* workspace,
                    Arithmetic<S>* value, double* moments, void* stream) {
  const int64_t tiles = problem.channels * chunks(problem);
  const Reduction reduction = make_reduction(workspace, problem.samples, 6, tiles, stream);
  DIFFREG_LAUNCH(forward_kernel<S>, problem.samples * tiles, block_shape(), stream, problem, images,
                 reduction, value, moments);
}

template <typename S>
void launch_backward(const Problem& problem, const Images<S>& images, const Arithmetic<S>* gradient,
                     const double* moments, S* grad_warped, S* grad_fixed, void* stream) {
  const int64_t blocks = problem.samples * problem.channels * chunks(problem);
  DIFFREG_LAUNCH(backward_kernel<S>, blocks, block_shape(), stream, problem, images, gradient,
                 moments, grad_warped, grad_fixed);
}

#define DIFFREG_INSTANCES(S)                                                                       \
  template void launch_forward(const Problem&, const Images<S>&, double*, Arithmetic<S>*, double*, \
                               void*);                                                             \
  template void launch_backward(const Problem&, const Images<S>&, const Arithmetic<S>*,            \
                                const double*, S*, S*, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::correlation
