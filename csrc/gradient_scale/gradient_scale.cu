// eta * mean |grad I| and its floor in one pass over the image; the gradient in a second one, after
// a first that finds out whether the floor holds. Called by gradient_scale_cuda.cpp.
#include "../common/block_reduce.h"
#include "../common/gradient_tile.h"
#include "gradient_scale_cuda.h"

namespace diffreg::gradient_scale {
namespace {

template <typename S>
GradientTiles<S> tiles_of(const Problem& problem) {
  return {problem.samples * problem.channels, problem.height, problem.width};
}

// What a sample comes to. The gradient does not pass where the floor holds.
struct Measure {
  double scale, per_voxel, floored;
};

// Sum of the weighted magnitudes, sum of the weights, and the largest |I|, of every tile.
template <typename S, typename Finish>
DIFFREG_DEVICE void measure_tiles(const Problem& problem, const GradientTiles<S>& tiles,
                                  ImageTile<S, 1, 1>& tile, const S* image,
                                  const Arithmetic<S>* mask, const Reduction& reduction,
                                  const Finish& finish) {
  using T = Arithmetic<S>;
  const int64_t H = problem.height, W = problem.width;
  const int64_t sample_tiles = problem.channels * tiles.per_plane();
  for (int64_t index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
    const auto place = tiles.place(index);
    const int64_t n = place.plane / problem.channels;
    tile.fill(0, image + place.plane * H * W, tiles, place.y, place.x);
    __syncthreads();
    T sum = 0, weights = 0, largest = 0;
    for_tile<kTileColumns<S>, kGradientRows>([&](int row, int column) {
      const int64_t y = place.y + row, x = place.x + column;
      if (!inside(y, H) || !inside(x, W)) return;
      T g[2];
      tile.gradient(0, row, column, g);
      const T weight = mask ? load(mask + (n * H + y) * W + x) : T(1);
      sum += weight * magnitude(g[0], g[1]);
      weights += weight;
      const T size = std::abs(tile.image[0].at(row + 1, column + 1));
      largest = size > largest ? size : largest;
    });
    double sums[2] = {sum, weights}, most[1] = {largest};
    reduce_block<1, Largest>(most);  // its barriers also part this tile from the next
    reduce_block(sums);
    const double left[3] = {sums[0], sums[1], most[0]};
    leave(reduction, left, n, index % sample_tiles, sample_tiles);
    if (!comes_last(reduction.done + n, sample_tiles)) continue;
    const double* partials = reduction.partials + n * 3 * sample_tiles;
    most[0] = strided<Largest>(partials + 2 * sample_tiles, sample_tiles);
    for (int k = 0; k < 2; ++k) sums[k] = strided(partials + k * sample_tiles, sample_tiles);
    reduce_block<1, Largest>(most);
    reduce_block(sums);
    if (thread_index() == 0) finish(n, sums, most[0]);
  }
}

DIFFREG_DEVICE Measure measured(const Problem& problem, const double* sums, double largest) {
  const double per = sums[1] == 0 ? 0 : 1 / sums[1];
  const double mean = problem.eta * sums[0] * per;
  const double floor = floor_of(largest, problem.smallest_normal);
  return {mean < floor ? floor : mean, per, mean < floor ? 1.0 : 0.0};
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResident)
    forward_kernel(Problem problem, GradientTiles<S> tiles,
                   const S* image,             // (N, C, H, W)
                   const Arithmetic<S>* mask,  // (N, 1, H, W) or null
                   Reduction reduction,
                   Arithmetic<S>* scale) {  // (N)
  using Shared = ImageTile<S, 1, 1>;
  DIFFREG_SHARED(Shared, tile);
  measure_tiles(problem, tiles, tile, image, mask, reduction,
                [&](int64_t n, const double* sums, double largest) {
                  const Measure result = measured(problem, sums, largest);
                  store(scale + n, static_cast<Arithmetic<S>>(result.scale));
                });
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResident)
    measure_kernel(Problem problem, GradientTiles<S> tiles,
                   const S* image,             // (N, C, H, W)
                   const Arithmetic<S>* mask,  // (N, 1, H, W) or null
                   Reduction reduction,
                   Measure* measures) {  // (N)
  using Shared = ImageTile<S, 1, 1>;
  DIFFREG_SHARED(Shared, tile);
  measure_tiles(problem, tiles, tile, image, mask, reduction,
                [&](int64_t n, const double* sums, double largest) {
                  store_raw(measures + n, measured(problem, sums, largest));
                });
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResident)
    backward_kernel(Problem problem, GradientTiles<S> tiles,
                    const Arithmetic<S>* gradient,  // (N)
                    const S* image,                 // (N, C, H, W)
                    const Arithmetic<S>* mask,      // (N, 1, H, W) or null
                    const Measure* measures,        // (N)
                    S* grad_image) {                // (N, C, H, W)
  using T = Arithmetic<S>;
  using Shared = GradientMemory<S, 1>;
  DIFFREG_SHARED(Shared, memory);
  const int64_t H = problem.height, W = problem.width;
  for (int64_t index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
    const auto place = tiles.place(index);
    const int64_t n = place.plane / problem.channels, plane = place.plane * H * W;
    __syncthreads();  // the last tile's slopes have been read
    memory.pixels.fill(0, image + plane, tiles, place.y, place.x);
    __syncthreads();
    const Measure measure = load_raw(measures + n);
    const T factor = static_cast<T>(load(gradient + n) * problem.eta * measure.per_voxel);
    replace_by_slopes<S, 1>(
        memory, tiles, place.y, place.x, [&](int row, int column, int64_t y, int64_t x, T* p) {
          T g[2];
          memory.pixels.gradient(0, row, column, g);
          const T length = magnitude(g[0], g[1]);
          const T weight = mask ? factor * load(mask + (n * H + y) * W + x) : factor;
          for (int k = 0; k < 2; ++k) p[k] = weight * direction(g[k], length);
        });
    for_tile<kTileColumns<S>, kGradientRows>([&](int row, int column) {
      const int64_t y = place.y + row, x = place.x + column;
      if (!inside(y, H) || !inside(x, W)) return;
      const T sum = adjoint(memory, tiles, row, column, y, x);
      store(grad_image + plane + y * W + x, measure.floored != 0 ? T(0) : sum);
    });
  }
}

template <typename S>
Reduction reduction_of(const Problem& problem, double* workspace, void* stream) {
  return make_reduction(workspace, problem.samples, 3,
                        problem.channels * tiles_of<S>(problem).per_plane(), stream);
}

}  // namespace

template <typename S>
int64_t forward_doubles(const Problem& problem) {
  return reduction_doubles(problem.samples, 3, problem.channels * tiles_of<S>(problem).per_plane());
}

template <typename S>
void launch_forward(const Problem& problem, const S* image, const Arithmetic<S>* mask,
                    double* workspace, Arithmetic<S>* scale, void* stream) {
  const auto tiles = tiles_of<S>(problem);
  const Reduction reduction = reduction_of<S>(problem, workspace, stream);
  DIFFREG_LAUNCH(forward_kernel<S>, tiles.count(), block_shape(), stream, problem, tiles, image,
                 mask, reduction, scale);
}

template <typename S>
int64_t backward_doubles(const Problem& problem) {
  return problem.samples * (sizeof(Measure) / sizeof(double)) + forward_doubles<S>(problem);
}

template <typename S>
void launch_backward(const Problem& problem, const Arithmetic<S>* gradient, const S* image,
                     const Arithmetic<S>* mask, double* workspace, S* grad_image, void* stream) {
  const auto tiles = tiles_of<S>(problem);
  Measure* measures = reinterpret_cast<Measure*>(workspace);
  double* partials = reinterpret_cast<double*>(measures + problem.samples);
  const Reduction reduction = reduction_of<S>(problem, partials, stream);
  DIFFREG_LAUNCH(measure_kernel<S>, tiles.count(), block_shape(), stream, problem, tiles, image,
                 mask, reduction, measures);
  DIFFREG_LAUNCH(backward_kernel<S>, tiles.count(), block_shape(), stream, problem, tiles, gradient,
                 image, mask, measures, grad_image);
}

#define DIFFREG_INSTANCES(S)                                                            \
  template int64_t forward_doubles<S>(const Problem&);                                  \
  template int64_t backward_doubles<S>(const Problem&);                                 \
  template void launch_forward(const Problem&, const S*, const Arithmetic<S>*, double*, \
                               Arithmetic<S>*, void*);                                  \
  template void launch_backward(const Problem&, const Arithmetic<S>*, const S*,         \
                                const Arithmetic<S>*, double*, S*, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::gradient_scale
