// W(p) = moving(p + u(p)) and its gradients. A thread works on voxels of the fixed grid, rows are
// coalesced; what moving is read twice for comes out of the cache. Called by warp_cuda.cpp.
#include "../common/block_reduce.h"
#include "../common/tile.h"
#include "warp_cuda.h"

namespace diffreg::warp {
namespace {

constexpr int kWide = 64, kHigh = 16;
using FixedTiles = Tiles<kWide, kHigh>;
// One voxel a thread, where a block gathers.
using SmallTiles = Tiles<kColumns, kRows>;

template <typename Shape>
Shape tiles_of(int64_t planes, const int64_t* size) {
  return {planes, size[0], size[1]};
}

// Neighbours on the moving grid of voxel (y, x) of the fixed grid.
template <typename S>
DIFFREG_DEVICE void locate_voxel(const Problem& problem,
                                 const S* displacement,  // (D, *to) of one sample
                                 int64_t y, int64_t x, Neighbours<Arithmetic<S>>* at) {
  using T = Arithmetic<S>;
  const int64_t start[D] = {y, x}, voxel = y * problem.to[1] + x;
  T shift[D], bad = 0;
  for (int k = 0; k < D; ++k) {
    shift[k] = load(displacement + k * problem.to_voxels() + voxel);
    bad += poison(shift[k]);
  }
  for (int k = 0; k < D; ++k) {
    at[k] = locate(problem.sampling, static_cast<T>(start[k]) + shift[k], bad,
                   static_cast<int32_t>(problem.from[k]));
  }
}

// Calls run(n, voxel, y, x) for the voxels of the fixed grid that this thread works on.
template <typename Run>
DIFFREG_DEVICE void for_voxels(const Problem& problem, const FixedTiles& tiles, const Run& run) {
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const auto place = tiles.place(tile);
    for_tile<kWide, kHigh>([&](int row, int column) {
      const int64_t y = place.y + row, x = place.x + column;
      if (!inside(y, problem.to[0]) || !inside(x, problem.to[1])) return;
      run(place.plane, y * problem.to[1] + x, y, x);
    });
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    forward_kernel(Problem problem, FixedTiles tiles,
                   const S* moving,        // (N, C, *from)
                   const S* displacement,  // (N, D, *to)
                   S* warped) {            // (N, C, *to)
  const int64_t stride[D] = {problem.from[1], 1};
  const int64_t from = problem.from_voxels(), to = problem.to_voxels();
  for_voxels(problem, tiles, [&](int64_t n, int64_t voxel, int64_t y, int64_t x) {
    Neighbours<Arithmetic<S>> at[D];
    locate_voxel(problem, displacement + n * D * to, y, x, at);
    for (int64_t c = n * problem.channels; c < (n + 1) * problem.channels; ++c) {
      store(warped + c * to + voxel, value<D>(Reader<S>{moving + c * from}, stride, at));
    }
  });
}

// Voxels are copied as bytes, so that every dtype works.
template <typename V, typename U>
__global__ void __launch_bounds__(kThreads, kResident)
    nearest_kernel(Problem problem, FixedTiles tiles, V nan,
                   const V* moving,        // (N, C, *from)
                   const U* displacement,  // (N, D, *to)
                   V* warped) {            // (N, C, *to)
  const int64_t from = problem.from_voxels(), to = problem.to_voxels();
  for_voxels(problem, tiles, [&](int64_t n, int64_t voxel, int64_t y, int64_t x) {
    Neighbours<Arithmetic<U>> at[D];
    locate_voxel(problem, displacement + n * D * to, y, x, at);
    const int64_t source = at[0].low * problem.from[1] + at[1].low;
    const auto weight = at[0].low_weight * at[1].low_weight;
    for (int64_t c = n * problem.channels; c < (n + 1) * problem.channels; ++c) {
      V word = load_raw(moving + c * from + source);
      if (weight == 0) word = V{};
      if (!(weight == weight)) word = nan;
      store_raw(warped + c * to + voxel, word);
    }
  });
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResident)
    backward_kernel(Problem problem, FixedTiles tiles,
                    const S* gradient,           // (N, C, *to)
                    const S* moving,             // (N, C, *from)
                    const S* displacement,       // (N, D, *to)
                    Arithmetic<S>* grad_moving,  // (N, C, *from), zeros, or null
                    S* grad_displacement) {      // (N, D, *to) or null
  using T = Arithmetic<S>;
  const int64_t stride[D] = {problem.from[1], 1};
  const int64_t from = problem.from_voxels(), to = problem.to_voxels();
  for_voxels(problem, tiles, [&](int64_t n, int64_t voxel, int64_t y, int64_t x) {
    Neighbours<T> at[D];
    locate_voxel(problem, displacement + n * D * to, y, x, at);
    T sum[D] = {};
    for (int64_t c = n * problem.channels; c < (n + 1) * problem.channels; ++c) {
      const T upstream = load(gradient + c * to + voxel);
      if (grad_displacement) {
        // Read once for each derivative: the cache has them, and registers decide how many blocks
        // are resident.
        const Reader<S> image{moving + c * from};
        sum[0] += upstream * Corners<D, T>(image, stride, at).template derivative<0>(at);
        sum[1] += upstream * Corners<D, T>(image, stride, at).template derivative<1>(at);
      }
      if (grad_moving) {
        splat<D>(grad_moving + c * from, stride, at, upstream, 0, problem.from[0],
                 [](T* corner, T part) { atomicAdd(corner, part); });
      }
    }
    if (!grad_displacement) return;
    for (int k = 0; k < D; ++k) store(grad_displacement + (n * D + k) * to + voxel, sum[k]);
  });
}

// The box of moving voxels that a tile of the fixed grid reads.
struct Box {
  double low[D], high[D];

  DIFFREG_DEVICE bool meets(int64_t y, int64_t x) const {
    return low[0] < y + kRows && high[0] >= y && low[1] < x + kColumns && high[1] >= x;
  }
};

template <typename S>
__global__ void __launch_bounds__(kThreads, kResident)
    bounds_kernel(Problem problem, SmallTiles tiles,
                  const S* displacement,  // (N, D, *to)
                  Box* boxes) {           // (N, tiles)
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    const auto place = tiles.place(tile);
    const int64_t y = place.y + threadIdx.y, x = place.x + threadIdx.x;
    double reach[2 * D] = {-4e9, -4e9, -4e9, -4e9};  // highest, and lowest with its sign changed
    if (inside(y, problem.to[0]) && inside(x, problem.to[1])) {
      Neighbours<Arithmetic<S>> at[D];
      locate_voxel(problem, displacement + place.plane * D * problem.to_voxels(), y, x, at);
      for (int k = 0; k < D; ++k) {
        reach[k] = at[k].high;
        reach[D + k] = -at[k].low;
      }
    }
    reduce_block<2 * D, Largest>(reach);
    if (thread_index() != 0) continue;
    store_raw(boxes + tile, Box{{-reach[2], -reach[3]}, {reach[0], reach[1]}});
  }
}

// What the voxels of one tile of the fixed grid give.
template <typename T>
struct Givers {
  Neighbours<T> at[kThreads][D];
  T upstream[kThreads];
};

// A thread owns one voxel of the moving grid, and adds up what falls on it, tile by tile of the
// fixed grid and voxel by voxel: the same bits at every run.
template <typename S>
__global__ void __launch_bounds__(kThreads, kResident)
    gather_kernel(Problem problem, SmallTiles owned, SmallTiles tiles,
                  const S* gradient,             // (N, C, *to)
                  const S* displacement,         // (N, D, *to)
                  const Box* boxes,              // (N, tiles)
                  Arithmetic<S>* grad_moving) {  // (N, C, *from)
  using T = Arithmetic<S>;
  using Shared = Givers<T>;
  DIFFREG_SHARED(Shared, givers);
  const int64_t stride[D] = {problem.from[1], 1};
  for (int64_t index = blockIdx.x; index < owned.count(); index += gridDim.x) {
    const auto place = owned.place(index);
    const int64_t n = place.plane / problem.channels, to = problem.to_voxels();
    const int64_t y = place.y + threadIdx.y, x = place.x + threadIdx.x;
    T* own = grad_moving + place.plane * problem.from_voxels() + y * problem.from[1] + x;
    T sum = 0;
    for (int64_t tile = 0; tile < tiles.per_plane(); ++tile) {
      if (!load_raw(boxes + n * tiles.per_plane() + tile).meets(place.y, place.x)) continue;
      const auto giver = tiles.place(tile);
      const int64_t from_y = giver.y + threadIdx.y, from_x = giver.x + threadIdx.x;
      const int me = thread_index();
      givers.upstream[me] = 0;
      for (int k = 0; k < D; ++k) givers.at[me][k] = {};
      if (inside(from_y, problem.to[0]) && inside(from_x, problem.to[1])) {
        locate_voxel(problem, displacement + n * D * to, from_y, from_x, givers.at[me]);
        givers.upstream[me] = load(gradient + place.plane * to + from_y * problem.to[1] + from_x);
      }
      __syncthreads();
      for (int k = 0; k < kThreads; ++k) {
        splat<D>(own - y * problem.from[1] - x, stride, givers.at[k], givers.upstream[k], y, y + 1,
                 [&](T* corner, T part) { sum += corner == own ? part : T(0); });
      }
      __syncthreads();  // everybody has read before the next tile is laid down
    }
    if (inside(y, problem.from[0]) && inside(x, problem.from[1])) store(own, sum);
  }
}

}  // namespace

template <typename S>
void launch_forward(const Problem& problem, const S* moving, const S* displacement, S* warped,
                    void* stream) {
  const auto tiles = tiles_of<FixedTiles>(problem.samples, problem.to);
  DIFFREG_LAUNCH(forward_kernel<S>, tiles.count(), block_shape(), stream, problem, tiles, moving,
                 displacement, warped);
}

template <typename V, typename U>
void launch_nearest(const Problem& problem, V nan, const V* moving, const U* displacement,
                    V* warped, void* stream) {
  const auto tiles = tiles_of<FixedTiles>(problem.samples, problem.to);
  DIFFREG_LAUNCH((nearest_kernel<V, U>), tiles.count(), block_shape(), stream, problem, tiles, nan,
                 moving, displacement, warped);
}

template <typename S>
void launch_backward(const Problem& problem, const S* gradient, const S* moving,
                     const S* displacement, Arithmetic<S>* grad_moving, S* grad_displacement,
                     void* stream) {
  const auto tiles = tiles_of<FixedTiles>(problem.samples, problem.to);
  if (grad_moving) {
    const int64_t voxels = problem.samples * problem.channels * problem.from_voxels();
    zero(grad_moving, voxels * sizeof(Arithmetic<S>), stream);
  }
  DIFFREG_LAUNCH(backward_kernel<S>, tiles.count(), block_shape(), stream, problem, tiles, gradient,
                 moving, displacement, grad_moving, grad_displacement);
}

int64_t gather_doubles(const Problem& problem) {
  return tiles_of<SmallTiles>(problem.samples, problem.to).count() * (sizeof(Box) / sizeof(double));
}

template <typename S>
void launch_gather(const Problem& problem, const S* gradient, const S* displacement,
                   double* workspace, Arithmetic<S>* grad_moving, void* stream) {
  const auto tiles = tiles_of<SmallTiles>(problem.samples, problem.to);
  const auto owned = tiles_of<SmallTiles>(problem.samples * problem.channels, problem.from);
  Box* boxes = reinterpret_cast<Box*>(workspace);
  DIFFREG_LAUNCH(bounds_kernel<S>, tiles.count(), block_shape(), stream, problem, tiles,
                 displacement, boxes);
  DIFFREG_LAUNCH(gather_kernel<S>, owned.count(), block_shape(), stream, problem, owned, tiles,
                 gradient, displacement, boxes, grad_moving);
}

#define DIFFREG_NEAREST(V, S) \
  template void launch_nearest(const Problem&, V, const V*, const S*, V*, void*);
#define DIFFREG_INSTANCES(S)                                                                       \
  template void launch_forward(const Problem&, const S*, const S*, S*, void*);                     \
  template void launch_backward(const Problem&, const S*, const S*, const S*, Arithmetic<S>*, S*,  \
                                void*);                                                            \
  template void launch_gather(const Problem&, const S*, const S*, double*, Arithmetic<S>*, void*); \
  DIFFREG_NEAREST(uint8_t, S)                                                                      \
  DIFFREG_NEAREST(uint16_t, S)                                                                     \
  DIFFREG_NEAREST(uint32_t, S)                                                                     \
  DIFFREG_NEAREST(uint64_t, S)                                                                     \
  DIFFREG_NEAREST(TwoWords, S)
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::warp
