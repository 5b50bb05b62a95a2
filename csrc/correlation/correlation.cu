// 1 - cc in one pass over the images: a block holds a tile in registers and takes its moments about
// the tile's own means, which a second kernel merges exactly; the gradient is affine in both
// images. A thread adds its few terms in the images' arithmetic, all else is in double.
#include "tile_moments.h"

namespace diffreg::correlation {
namespace {

// Vectors of each image that a thread holds: 16 voxels forward, 8 backward; half as many doubles.
template <typename S>
constexpr int kForward = sizeof(S) == 2 ? 2 : 4;
template <typename S>
constexpr int kBackward = kForward<S> / 2;

// Blocks of a multiprocessor, as kResidentOf.
template <typename S>
constexpr int kBlocks = sizeof(S) == 8 ? 2 : 3;

template <typename S, int vectors>
Tiles tiles_of(const Problem& problem) {
  return Tiles(problem.samples, problem.channels, problem.voxels, kThreads * vectors * kVector<S>);
}

constexpr int kPart = 6;  // weight, means, centred sums

template <typename S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    tiles_kernel(Tiles tiles, Images<S> images, bool aligned,
                 double* partials) {  // (N, 6, tiles)
  for (int64_t index = blockIdx.x; index < tiles.count; index += gridDim.x) {
    const Tile tile(tiles, index);
    const PartMoments part = moments_of_tile(Voxels<S, kForward<S>>(tiles, tile, images, aligned));
    if (thread_index() != 0) continue;
    const double all[kPart] = {part.weight,        part.mean_warped, part.mean_fixed,
                               part.warped_warped, part.fixed_fixed, part.product};
    for (int k = 0; k < kPart; ++k) {
      store(partials + (tile.n * kPart + k) * tiles.of_sample + tile.within, all[k]);
    }
  }
}

// Moments of a sample from those of its tiles, in thread 0: the tiles' own, and their means about
// the sample's.
DIFFREG_DEVICE Moments merge_tiles(const double* partials,  // (6, tiles)
                                   int64_t tiles, double epsilon) {
  const auto at = [&](int64_t tile, int k) { return load(partials + k * tiles + tile); };
  double raw[3] = {0, 0, 0}, centred[3] = {0, 0, 0};
  for (int64_t tile = thread_index(); tile < tiles; tile += kThreads) {
    const double weight = at(tile, 0);
    raw[0] += weight;
    raw[1] += weight * at(tile, 1);
    raw[2] += weight * at(tile, 2);
  }
  const Totals totals = broadcast_sum(raw);
  const double mean_warped = totals.mean(1), mean_fixed = totals.mean(2);
  for (int64_t tile = thread_index(); tile < tiles; tile += kThreads) {
    const double weight = at(tile, 0);
    if (weight == 0) continue;
    const double b = at(tile, 1) - mean_warped, a = at(tile, 2) - mean_fixed;
    centred[0] += at(tile, 3) + weight * (b * b);
    centred[1] += at(tile, 4) + weight * (a * a);
    centred[2] += at(tile, 5) + weight * (a * b);
  }
  reduce_block(centred);
  const PartMoments whole{totals.of[0], mean_warped, mean_fixed,
                          centred[0],   centred[1],  centred[2]};
  return whole.moments(epsilon);
}

// Values of the samples, a block each.
template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    value_kernel(int64_t samples, int64_t tiles, double epsilon,
                 const double* partials,  // (N, 6, tiles)
                 T* value,                // (N)
                 double* moments) {       // (N, 5)
  for (int64_t n = blockIdx.x; n < samples; n += gridDim.x) {
    const Moments whole = merge_tiles(partials + n * kPart * tiles, tiles, epsilon);
    if (thread_index() != 0) continue;
    const double all[kMoments] = {whole.mean_warped, whole.mean_fixed, whole.warped_warped,
                                  whole.fixed_fixed, whole.product};
    for (int k = 0; k < kMoments; ++k) store(moments + n * kMoments + k, all[k]);
    store(value + n, static_cast<T>(whole.value()));
  }
}

// Both gradients of a sample: each is own by_own - other by_other.
struct Slopes {
  double mean_warped, mean_fixed, by_warped, by_fixed, by_other;
};

DIFFREG_DEVICE Slopes load_slopes(const double* m,  // (5)
                                  double upstream) {
  const Moments moments{load(m), load(m + 1), load(m + 2), load(m + 3), load(m + 4)};
  return {moments.mean_warped, moments.mean_fixed,
          upstream * moments.slope_by_own(moments.warped_warped),
          upstream * moments.slope_by_own(moments.fixed_fixed),
          upstream * moments.slope_by_other()};
}

template <typename S>
struct Gradients {
  S* warped;        // (N, C, *S) or null
  S* fixed;         // (N, C, *S) or null
  bool accumulate;  // to what is there
};

// Products are rounded, so that equal images pull and push as much, to the bit.
template <bool any, typename S, int vectors>
DIFFREG_DEVICE void fill(const Voxels<S, vectors>& voxels, const Slopes& slopes, int64_t first,
                         const Gradients<S>& to) {
  constexpr int V = kVector<S>;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    Arithmetic<S> weights[V], to_warped[V], to_fixed[V];
    voxels.template load_weights<any>(v, weights);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const double b = voxels.warped[v][k] - slopes.mean_warped;
      const double a = voxels.fixed[v][k] - slopes.mean_fixed;
      const auto times_weight = [&](double gradient) {
        return static_cast<Arithmetic<S>>(weights[k] * visible(gradient, weights[k]));
      };
      to_warped[k] =
          times_weight(rounded_product(b, slopes.by_warped) - rounded_product(a, slopes.by_other));
      to_fixed[k] =
          times_weight(rounded_product(a, slopes.by_fixed) - rounded_product(b, slopes.by_other));
    }
    const int64_t at = first + voxels.first(v);
    const auto put = [&](S* gradient, Arithmetic<S>(&values)[V]) {
      if (to.accumulate) {
        Arithmetic<S> there[V];
        load_values<V>(gradient + at, voxels.count(v), voxels.whole(v), there);
        for (int k = 0; k < V; ++k) values[k] += there[k];
      }
      store_values<V>(gradient + at, voxels.count(v), voxels.whole(v), values);
    };
    if (to.warped) put(to.warped, to_warped);
    if (to.fixed) put(to.fixed, to_fixed);
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    backward_kernel(Tiles tiles, Images<S> images, bool aligned,
                    const Arithmetic<S>* gradient,  // (N)
                    const double* moments,          // (N, 5)
                    Gradients<S> to) {
  DIFFREG_SHARED(Slopes, slopes);
  for (int64_t index = blockIdx.x; index < tiles.count; index += gridDim.x) {
    const Tile tile(tiles, index);
    const Voxels<S, kBackward<S>> voxels(tiles, tile, images, aligned);
    __syncthreads();            // the last tile's slopes have been read
    if (thread_index() == 0) {  // while the voxels are on their way
      slopes = load_slopes(moments + tile.n * kMoments, load(gradient + tile.n));
    }
    __syncthreads();
    if (voxels.masked) {
      fill<true>(voxels, slopes, tile.in_image, to);
    } else {
      fill<false>(voxels, slopes, tile.in_image, to);
    }
  }
}

template <typename S>
bool is_aligned(const Problem& problem, const Images<S>& images, const Gradients<S>& to) {
  const auto fits = [&](const S* image) {
    return diffreg::is_aligned(image, problem.samples * problem.channels, problem.voxels);
  };
  return fits(images.warped) && fits(images.fixed) && fits(to.warped) && fits(to.fixed) &&
         diffreg::is_aligned(images.mask, problem.samples, problem.voxels);
}

}  // namespace

template <typename S>
int64_t forward_doubles(const Problem& problem) {
  return problem.samples * kPart * tiles_of<S, kForward<S>>(problem).of_sample;
}

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images, double* workspace,
                    Arithmetic<S>* value, double* moments, void* stream) {
  const Tiles tiles = tiles_of<S, kForward<S>>(problem);
  const bool aligned = is_aligned<S>(problem, images, {nullptr, nullptr, false});
  DIFFREG_LAUNCH(tiles_kernel<S>, tiles.count, block_shape(), stream, tiles, images, aligned,
                 workspace);
  DIFFREG_LAUNCH(value_kernel<Arithmetic<S>>, problem.samples, block_shape(), stream,
                 problem.samples, tiles.of_sample, problem.epsilon, workspace, value, moments);
}

template <typename S>
void launch_backward(const Problem& problem, const Images<S>& images, const Arithmetic<S>* gradient,
                     const double* moments, S* grad_warped, S* grad_fixed, bool accumulate,
                     void* stream) {
  const Tiles tiles = tiles_of<S, kBackward<S>>(problem);
  const Gradients<S> to{grad_warped, grad_fixed, accumulate};
  DIFFREG_LAUNCH(backward_kernel<S>, tiles.count, block_shape(), stream, tiles, images,
                 is_aligned(problem, images, to), gradient, moments, to);
}

#define DIFFREG_INSTANCES(S)                                                                       \
  template int64_t forward_doubles<S>(const Problem&);                                             \
  template void launch_forward(const Problem&, const Images<S>&, double*, Arithmetic<S>*, double*, \
                               void*);                                                             \
  template void launch_backward(const Problem&, const Images<S>&, const Arithmetic<S>*,            \
                                const double*, S*, S*, bool, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::correlation
