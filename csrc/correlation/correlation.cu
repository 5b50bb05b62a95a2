// 1 - cc in one pass over the images: every tile takes its moments about its own means, and the
// tiles' moments are merged exactly; the gradient is affine in both images. In double.
#include "../common/block_reduce.h"
#include "correlation_cuda.h"

namespace diffreg::correlation {
namespace {

// Voxels of a thread whose loads are in flight at once, several times. For the second of two sums
// they are loaded again, and come out of the cache: in registers they would leave room for few
// blocks.
constexpr int kPerThread = 4;
constexpr int64_t kChunk = 4 * kPerThread * kThreads;

// How many there are, counted by the host: it leaves registers to the kernels.
struct Chunks {
  int64_t of_plane, of_sample, count;

  explicit Chunks(const Problem& problem)
      : of_plane((problem.voxels + kChunk - 1) / kChunk),
        of_sample(problem.channels * of_plane),
        count(problem.samples * of_sample) {}
};

struct Means {
  double warped, fixed;
};

struct Totals {
  double of[3];
};

// Sums three values over the block, weight, warped, fixed, and broadcasts them to every thread.
DIFFREG_DEVICE Totals broadcast_sum(const double (&values)[3]) {
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

// Where a block works: a chunk of a plane, which its threads go over in a block-stride loop.
struct Place {
  int64_t n, plane, within;  // within: number of the chunk in its sample
  int64_t first;             // the thread's first voxel, in its plane
  int64_t end;               // of the chunk

  DIFFREG_DEVICE Place(const Problem& problem, const Chunks& chunks, int64_t index) {
    plane = index / chunks.of_plane;
    n = plane / problem.channels;
    within = index - n * chunks.of_sample;
    const int64_t chunk = (index - plane * chunks.of_plane) * kChunk;
    first = chunk + thread_index();
    end = chunk + kChunk < problem.voxels ? chunk + kChunk : problem.voxels;
  }
};

// Voxels that a thread works on, loaded together: from `first` on, every kThreads.
template <typename S>
struct Voxels {
  Arithmetic<S> warped[kPerThread], fixed[kPerThread], weight[kPerThread];
  int32_t remaining;  // voxels from the first to the chunk's end

  DIFFREG_DEVICE Voxels(const Problem& problem, const Images<S>& images, const Place& place,
                        int64_t first)
      : remaining(static_cast<int32_t>(place.end - first)) {
    const int64_t at = place.plane * problem.voxels + first;
    const auto* mask = images.mask ? images.mask + place.n * problem.voxels + first : nullptr;
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      warped[k] = valid(k) ? load(images.warped + at + k * kThreads) : 0;
      fixed[k] = valid(k) ? load(images.fixed + at + k * kThreads) : 0;
      weight[k] = valid(k) ? (mask ? load(mask + k * kThreads) : 1) : 0;
    }
  }
  DIFFREG_DEVICE bool valid(int k) const { return inside(k * kThreads, remaining); }

  DIFFREG_DEVICE void add_raw(double (&sums)[3]) const {
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      sums[0] += double(weight[k]);
      sums[1] += double(weight[k]) * counted(warped[k], weight[k]);
      sums[2] += double(weight[k]) * counted(fixed[k], weight[k]);
    }
  }
  DIFFREG_DEVICE void add_centred(const Means& mean, double (&sums)[3]) const {
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const double b = counted(warped[k] - mean.warped, weight[k]);
      const double a = counted(fixed[k] - mean.fixed, weight[k]);
      sums[0] += weight[k] * (b * b);
      sums[1] += weight[k] * (a * a);
      sums[2] += weight[k] * (a * b);
    }
  }
};

// Calls run(voxels, first) for the voxels of a chunk that this thread works on.
template <typename S, typename Run>
DIFFREG_DEVICE void for_voxels(const Problem& problem, const Images<S>& images, const Place& place,
                               const Run& run) {
#pragma unroll 1
  for (int64_t first = place.first; first < place.end; first += kPerThread * kThreads) {
    run(Voxels<S>(problem, images, place, first), first);
  }
}

// Moments of a sample from those of its tiles: sums about each tile's means, and the tiles' means
// about the sample's. partials: (6, tiles): weight, warped, fixed, then the centred sums.
DIFFREG_DEVICE Moments merge_tiles(const Problem& problem, const double* partials, int64_t tiles) {
  double raw[3], centred[3] = {0, 0, 0};
  for (int k = 0; k < 3; ++k) raw[k] = block_stride_reduce(partials + k * tiles, tiles);
  const Totals totals = broadcast_sum(raw);
  const Means mean = means_of(totals);
#pragma unroll 1  // registers decide how many blocks are resident
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
__global__ void __launch_bounds__(kThreads, kResidentOf<S> == 4 ? 3 : 2)
    forward_kernel(Problem problem, Chunks chunks, Images<S> images, Reduction reduction,
                   Arithmetic<S>* value,  // (N)
                   double* moments) {     // (N, 5)
  const int64_t tiles = chunks.of_sample;
  for (int64_t index = blockIdx.x; index < chunks.count; index += gridDim.x) {
    const Place place(problem, chunks, index);
    const int64_t n = place.n;
    double raw[3] = {0, 0, 0}, centred[3] = {0, 0, 0};
    for_voxels(problem, images, place,
               [&](const Voxels<S>& voxels, int64_t) { voxels.add_raw(raw); });
    const Totals totals = broadcast_sum(raw);
    const Means mean = means_of(totals);
    for_voxels(problem, images, place,
               [&](const Voxels<S>& voxels, int64_t) { voxels.add_centred(mean, centred); });
    reduce_block(centred);
    const double tile_sums[6] = {totals.of[0], totals.of[1], totals.of[2],
                                 centred[0],   centred[1],   centred[2]};
    store_partials(reduction, tile_sums, n, place.within, tiles);
    if (!is_last_block(reduction.tickets + n, tiles)) continue;
    const Moments whole = merge_tiles(problem, reduction.partials + n * 6 * tiles, tiles);
    if (thread_index() != 0) continue;
    const double all[kMoments] = {whole.mean_warped, whole.mean_fixed, whole.warped_warped,
                                  whole.fixed_fixed, whole.product};
    for (int k = 0; k < kMoments; ++k) store(moments + n * kMoments + k, all[k]);
    store(value + n, static_cast<Arithmetic<S>>(whole.value()));
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    backward_kernel(Problem problem, Chunks chunks, Images<S> images,
                    const Arithmetic<S>* gradient,  // (N)
                    const double* moments,          // (N, 5)
                    S* grad_warped,                 // (N, C, *S) or null
                    S* grad_fixed,                  // (N, C, *S) or null
                    bool accumulate) {
  using T = Arithmetic<S>;
  for (int64_t index = blockIdx.x; index < chunks.count; index += gridDim.x) {
    const Place place(problem, chunks, index);
    const double* m = moments + place.n * kMoments;
    const Moments moment{load(m), load(m + 1), load(m + 2), load(m + 3), load(m + 4)};
    const double upstream = load(gradient + place.n), other = upstream * moment.slope_by_other();
    const double own_warped = upstream * moment.slope_by_own(moment.warped_warped);
    const double own_fixed = upstream * moment.slope_by_own(moment.fixed_fixed);
    for_voxels(problem, images, place, [&](const Voxels<S>& voxels, int64_t first) {
      const int64_t at = place.plane * problem.voxels + first;
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        if (!voxels.valid(k)) continue;
        const double b = voxels.warped[k] - moment.mean_warped;
        const double a = voxels.fixed[k] - moment.mean_fixed, weight = voxels.weight[k];
        const auto put = [&](S* to, double slope) {
          const T found = static_cast<T>(weight * visible(slope, weight));
          store(to, accumulate ? load(to) + found : found);
        };
        if (grad_warped) put(grad_warped + at + k * kThreads, own_warped * b - other * a);
        if (grad_fixed) put(grad_fixed + at + k * kThreads, own_fixed * a - other * b);
      }
    });
  }
}

}  // namespace

int64_t forward_doubles(const Problem& problem) {
  return reduction_doubles(problem.samples, 6, Chunks(problem).of_sample);
}

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images, double* workspace,
                    Arithmetic<S>* value, double* moments, void* stream) {
  const Chunks chunks(problem);
  const Reduction reduction =
      make_reduction(workspace, problem.samples, 6, chunks.of_sample, stream);
  DIFFREG_LAUNCH(forward_kernel<S>, chunks.count, block_shape(), stream, problem, chunks, images,
                 reduction, value, moments);
}

template <typename S>
void launch_backward(const Problem& problem, const Images<S>& images, const Arithmetic<S>* gradient,
                     const double* moments, S* grad_warped, S* grad_fixed, bool accumulate,
                     void* stream) {
  const Chunks chunks(problem);
  DIFFREG_LAUNCH(backward_kernel<S>, chunks.count, block_shape(), stream, problem, chunks, images,
                 gradient, moments, grad_warped, grad_fixed, accumulate);
}

#define DIFFREG_INSTANCES(S)                                                                       \
  template void launch_forward(const Problem&, const Images<S>&, double*, Arithmetic<S>*, double*, \
                               void*);                                                             \
  template void launch_backward(const Problem&, const Images<S>&, const Arithmetic<S>*,            \
                                const double*, S*, S*, bool, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::correlation
