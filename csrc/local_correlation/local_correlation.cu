// Windowed correlation: box sums by running sums down the columns and direct sums along the rows,
// in double, five of them at a time. The gradient is box sums of five terms a window.
#include "../common/block_reduce.h"
#include "../common/mask_total.h"
#include "../common/tile.h"
#include "local_correlation_cuda.h"

namespace diffreg::local_correlation {
namespace {

constexpr int kStrip = 32;  // rows that one thread runs down
using ColumnTiles = Tiles<kThreads, kStrip>;
constexpr int kTileRows = 4 * kRows;
constexpr int kResidentBlocks = 3;  // of a multiprocessor, for which registers must do
using SmallTiles = Tiles<kColumns, kTileRows>;

// A voxel of both images, as the measure reads it.
template <typename T>
struct Pair {
  T warped, fixed;
  bool hides_warped, hides_fixed;
};

// One channel of both images, and the mask's weights.
template <typename S>
struct PairPlane {
  using T = Arithmetic<S>;
  const S* warped;
  const S* fixed;
  const T* mask;  // or null

  DIFFREG_DEVICE PairPlane(const Images<S>& images, int64_t channels, int64_t plane, int64_t voxels)
      : warped(images.warped + plane * voxels),
        fixed(images.fixed + plane * voxels),
        mask(images.mask ? images.mask + plane / channels * voxels : nullptr) {}

  DIFFREG_DEVICE Pair<T> at(int64_t voxel) const {
    const T w = load(warped + voxel), r = load(fixed + voxel);
    const T weight = mask ? load(mask + voxel) : T(1);
    return {visible(w, weight), visible(r, weight), hidden(w, weight), hidden(r, weight)};
  }
  // The terms of a voxel out of both images.
  DIFFREG_DEVICE void operator()(int64_t voxel, double* terms) const {
    const Pair<T> pair = at(voxel);
    image_terms(pair.warped, pair.fixed, terms);
  }
};

template <typename S>
struct ImageTerms {
  Images<S> images;
  int64_t channels;
  DIFFREG_DEVICE PairPlane<S> of(int64_t plane, int64_t voxels) const {
    return {images, channels, plane, voxels};
  }
};

// The gradient terms of the windows, which windows_kernel stored.
struct WindowTerms {
  const double* stored;  // (N * C, 5, H, W)

  struct Plane {
    const double* stored;  // (5, H, W)
    int64_t voxels;

    DIFFREG_DEVICE void operator()(int64_t voxel, double* terms) const {
      for (int k = 0; k < kTerms; ++k) terms[k] = load(stored + k * voxels + voxel);
    }
  };
  DIFFREG_DEVICE Plane of(int64_t plane, int64_t voxels) const {
    return {stored + plane * kTerms * voxels, voxels};
  }
};

// Sums of the terms over radius rows above and below.
template <typename Terms>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    columns_kernel(Problem problem, ColumnTiles tiles, Terms terms_of,
                   double* columns) {  // (N * C, 5, H, W)
  const int64_t H = problem.height, W = problem.width, r = problem.radius;
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const auto place = tiles.place(tile);
    const int64_t x = place.x + thread_index();
    if (!inside(x, W)) continue;
    const auto plane = terms_of.of(place.plane, H * W);
    double running[kTerms] = {};
    const auto add = [&](int64_t y, double sign) {
      if (!inside(y, H)) return;
      double terms[kTerms];
      plane(y * W + x, terms);
      for (int k = 0; k < kTerms; ++k) running[k] += sign * terms[k];
    };
    for (int64_t y = place.y - r; y < place.y + r; ++y) add(y, 1);
    for (int64_t y = place.y; y < place.y + kStrip && y < H; ++y) {
      add(y + r, 1);
      if (y > place.y) add(y - r - 1, -1);
      for (int k = 0; k < kTerms; ++k) {
        store(columns + ((place.plane * kTerms + k) * H + y) * W + x, running[k]);
      }
    }
  }
}

// Calls run(y, x) for the voxels of a tile that this thread works on.
template <typename Run>
DIFFREG_DEVICE void for_tile(const Problem& problem, const SmallTiles::Place& place,
                             const Run& run) {
  const int64_t x = place.x + threadIdx.x, end = place.y + kTileRows;
  if (!inside(x, problem.width)) return;
#pragma unroll 1
  for (int64_t y = place.y + threadIdx.y; y < end && inside(y, problem.height); y += kRows) {
    run(static_cast<int32_t>(y), static_cast<int32_t>(x));
  }
}

// Voxels of the window around an index that lie inside an axis of that size.
DIFFREG_DEVICE int32_t window_count(int32_t at, int32_t radius, int32_t size) {
  return clamped(at + radius, size) - clamped(at - radius, size) + 1;
}

// Box sums at (y, x): the columns' sums over radius columns to either side.
DIFFREG_DEVICE void sum_box(const Problem& problem,
                            const double* columns,  // (5, H, W) of one plane
                            int32_t y, int32_t x, double* sums) {
  const int32_t width = static_cast<int32_t>(problem.width);
  const int32_t radius = static_cast<int32_t>(problem.radius);
  const int32_t first = clamped(x - radius, width);
  const double* row[kTerms];
  for (int k = 0; k < kTerms; ++k) {
    row[k] = row_of(columns + k * problem.height * problem.width, y, width) + first;
    sums[k] = 0;
  }
  const int32_t count = window_count(x, radius, width);
#pragma unroll 3  // fifteen loads in flight
  for (int32_t at = 0; at < count; ++at) {
    for (int k = 0; k < kTerms; ++k) sums[k] += load(row[k] + at);
  }
}

DIFFREG_DEVICE Window window_at(const Problem& problem,
                                const double* columns,  // (5, H, W) of one plane
                                int32_t y, int32_t x) {
  double sums[kTerms];
  sum_box(problem, columns, y, x, sums);
  const int32_t radius = static_cast<int32_t>(problem.radius);
  const int64_t rows = window_count(y, radius, static_cast<int32_t>(problem.height));
  return Window(sums,
                1 / double(rows * window_count(x, radius, static_cast<int32_t>(problem.width))));
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    value_kernel(Problem problem, SmallTiles tiles,
                 const double* columns,  // (N * C, 5, H, W)
                 const T* mask,          // (N, 1, H, W) or null
                 Reduction reduction,
                 T* value) {  // (N)
  const int64_t voxels = problem.height * problem.width;
  const int64_t sample_tiles = problem.channels * tiles.per_plane;
  const int32_t W = static_cast<int32_t>(problem.width);
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const auto place = tiles.place(tile);
    const int64_t n = place.plane / problem.channels;
    double sums[2] = {0, 0};
    for_tile(problem, place, [&](int32_t y, int32_t x) {
      const double weight = mask ? load(row_of(mask + n * voxels, y, W) + x) : 1;
      const Window window = window_at(problem, columns + place.plane * kTerms * voxels, y, x);
      sums[0] += weight * window.value();
      sums[1] += weight;
    });
    reduce_tiles(reduction, sums, n, tile % sample_tiles, sample_tiles, [&](const double* total) {
      const double per = total[1] == 0 ? 0 : 1 / total[1];
      store(value + n, static_cast<T>(total[0] * per));
    });
  }
}

// The gradient terms of every window.
template <typename T>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    windows_kernel(Problem problem, SmallTiles tiles,
                   const double* columns,   // (N * C, 5, H, W)
                   const T* mask,           // (N, 1, H, W) or null
                   const double* total,     // (N) or null
                   const T* gradient,       // (N)
                   double* window_terms) {  // (N * C, 5, H, W)
  const int64_t voxels = problem.height * problem.width;
  const int32_t W = static_cast<int32_t>(problem.width);
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const auto place = tiles.place(tile);
    const int64_t n = place.plane / problem.channels, plane = place.plane * kTerms * voxels;
    const double factor = load(gradient + n) * per_voxel(total, n, voxels) / problem.channels;
    for_tile(problem, place, [&](int32_t y, int32_t x) {
      const double weight = mask ? load(row_of(mask + n * voxels, y, W) + x) : 1;
      double terms[kTerms];
      window_at(problem, columns + plane, y, x).gradient_terms(factor * weight, terms);
      double* own = row_of(window_terms + plane, y, W) + x;
      for (int k = 0; k < kTerms; ++k) store(own + k * voxels, terms[k]);
    });
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentBlocks)
    gradient_kernel(Problem problem, SmallTiles tiles, Images<S> images,
                    const double* columns,  // (N * C, 5, H, W)
                    S* grad_warped,         // (N, C, H, W) or null
                    S* grad_fixed) {        // (N, C, H, W) or null
  using T = Arithmetic<S>;
  const int64_t voxels = problem.height * problem.width;
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const auto place = tiles.place(tile);
    const PairPlane<S> plane(images, problem.channels, place.plane, voxels);
    for_tile(problem, place, [&](int32_t y, int32_t x) {
      const int64_t voxel = y * problem.width + x, at = place.plane * voxels + voxel;
      const Pair<T> pair = plane.at(voxel);
      const double w = pair.warped, r = pair.fixed;
      double sum[kTerms];
      sum_box(problem, columns + place.plane * kTerms * voxels, y, x, sum);
      if (grad_warped) {
        const double slope = gradient_at(sum[0], sum[1], sum[2], w, r);
        store(grad_warped + at, pair.hides_warped ? T(0) : static_cast<T>(slope));
      }
      if (grad_fixed) {
        const double slope = gradient_at(sum[0], sum[3], sum[4], r, w);
        store(grad_fixed + at, pair.hides_fixed ? T(0) : static_cast<T>(slope));
      }
    });
  }
}

int64_t term_doubles(const Problem& problem) {
  return problem.samples * problem.channels * kTerms * problem.height * problem.width;
}

}  // namespace

int64_t forward_doubles(const Problem& problem) {
  const int64_t tiles = problem.channels * tiles_of<SmallTiles>(problem).per_plane;
  return term_doubles(problem) + reduction_doubles(problem.samples, 2, tiles);
}

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images, double* workspace,
                    Arithmetic<S>* value, void* stream) {
  const auto strips = tiles_of<ColumnTiles>(problem);
  const auto tiles = tiles_of<SmallTiles>(problem);
  const Reduction reduction = make_reduction(workspace + term_doubles(problem), problem.samples, 2,
                                             problem.channels * tiles.per_plane, stream);
  DIFFREG_LAUNCH(columns_kernel, strips.count(), block_shape(), stream, problem, strips,
                 ImageTerms<S>{images, problem.channels}, workspace);
  DIFFREG_LAUNCH(value_kernel<Arithmetic<S>>, tiles.count(), block_shape(), stream, problem, tiles,
                 workspace, images.mask, reduction, value);
}

int64_t backward_doubles(const Problem& problem, bool masked) {
  const int64_t mask = mask_total_doubles(problem.samples, problem.height * problem.width);
  return 2 * term_doubles(problem) + (masked ? mask : 0);
}

template <typename S>
void launch_backward(const Problem& problem, const Images<S>& images, const Arithmetic<S>* gradient,
                     double* workspace, S* grad_warped, S* grad_fixed, void* stream) {
  const auto strips = tiles_of<ColumnTiles>(problem);
  const auto tiles = tiles_of<SmallTiles>(problem);
  double* columns = workspace;
  double* window_terms = columns + term_doubles(problem);
  const double* total =
      launch_mask_total(problem.samples, problem.height * problem.width, images.mask,
                        window_terms + term_doubles(problem), stream);
  DIFFREG_LAUNCH(columns_kernel, strips.count(), block_shape(), stream, problem, strips,
                 ImageTerms<S>{images, problem.channels}, columns);
  DIFFREG_LAUNCH(windows_kernel<Arithmetic<S>>, tiles.count(), block_shape(), stream, problem,
                 tiles, columns, images.mask, total, gradient, window_terms);
  DIFFREG_LAUNCH(columns_kernel, strips.count(), block_shape(), stream, problem, strips,
                 WindowTerms{window_terms}, columns);
  DIFFREG_LAUNCH(gradient_kernel<S>, tiles.count(), block_shape(), stream, problem, tiles, images,
                 columns, grad_warped, grad_fixed);
}

#define DIFFREG_INSTANCES(S)                                                                      \
  template void launch_forward(const Problem&, const Images<S>&, double*, Arithmetic<S>*, void*); \
  template void launch_backward(const Problem&, const Images<S>&, const Arithmetic<S>*, double*,  \
                                S*, S*, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::local_correlation
