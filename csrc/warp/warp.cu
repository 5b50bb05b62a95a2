// W(p) = moving(p + u(p)) and its gradients. A thread works on a few voxels of the fixed grid at
// once, rows are coalesced; what moving is read twice for comes out of the cache.
#include "../common/block_reduce.h"
#include "../common/tile.h"
#include "corners.h"
#include "warp_cuda.h"

namespace diffreg::warp {
namespace {

// The voxels of the fixed grid that a thread works on at once (thread coarsening): in each of some
// rows two, a warp apart. Their loads are in flight together.
template <int rows>
struct ThreadVoxels {
  static constexpr int kPerThread = 2 * rows, kBlockRows = rows * kRows;
  using FixedTiles = Tiles<2 * kColumns, 32>;

  int64_t n, first;
  int32_t y, x, height, width;

  // Calls run(voxels) for the tiles of the block, in a grid-stride loop, some rows after the other.
  template <typename Run>
  DIFFREG_DEVICE static void grid_stride(const FixedTiles& tiles, const Run& run) {
    for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
      const auto place = tiles.place(tile);
      const int32_t width = static_cast<int32_t>(tiles.width);
      const int32_t y = static_cast<int32_t>(place.y) + rows * threadIdx.y;
      const int32_t x = static_cast<int32_t>(place.x) + threadIdx.x;
#pragma unroll 1
      for (int32_t down = 0; down < 32; down += kBlockRows) {
        run(ThreadVoxels{place.plane, int64_t{width} * (y + down) + x, y + down, x,
                         static_cast<int32_t>(tiles.height), width});
      }
    }
  }
  DIFFREG_DEVICE int32_t row(int k) const { return y + k / 2; }
  DIFFREG_DEVICE int32_t column(int k) const { return x + k % 2 * kColumns; }
  DIFFREG_DEVICE int64_t index(int k) const {
    return first + int64_t{width} * (k / 2) + k % 2 * kColumns;
  }
  DIFFREG_DEVICE bool valid(int k) const {
    return inside(row(k), height) && inside(column(k), width);
  }
};
using ValueVoxels = ThreadVoxels<2>;
using GradientVoxels = ThreadVoxels<1>;
// One voxel a thread, where a block gathers.
using SmallTiles = Tiles<kColumns, kRows>;

// Neighbours on the moving grid of voxel (y, x) of the fixed grid, which is displaced by `shift`.
template <typename T>
DIFFREG_DEVICE void locate_voxel(const Sampling& sampling, const int64_t* from, int32_t y,
                                 int32_t x, const T* shift, Neighbours<T>* at) {
  const int32_t start[D] = {y, x};
  T bad = 0;
  for (int k = 0; k < D; ++k) bad += poison(shift[k]);
  for (int k = 0; k < D; ++k) {
    at[k] =
        locate(sampling, static_cast<T>(start[k]) + shift[k], bad, static_cast<int32_t>(from[k]));
  }
}

template <typename S>
DIFFREG_DEVICE void locate_voxel(const Problem& problem,
                                 const S* displacement,  // (D, *to) of one sample
                                 int64_t y, int64_t x, Neighbours<Arithmetic<S>>* at) {
  Arithmetic<S> shift[D];
  for (int k = 0; k < D; ++k) {
    shift[k] = load(displacement + k * problem.to_voxels() + y * problem.to[1] + x);
  }
  locate_voxel(problem.sampling, problem.from, static_cast<int32_t>(y), static_cast<int32_t>(x),
               shift, at);
}

// The same for all of a thread's voxels; where it has none, for some other.
template <int rows, typename S>
DIFFREG_DEVICE void locate_voxels(const Problem& problem, const Sampling& sampling,
                                  const ThreadVoxels<rows>& voxels,
                                  const S* displacement,  // (N, D, *to)
                                  Neighbours<Arithmetic<S>> (*at)[D]) {
  constexpr int kPerThread = ThreadVoxels<rows>::kPerThread;
  const S* field = displacement + voxels.n * D * problem.to_voxels();
  Arithmetic<S> shift[kPerThread][D];
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    for (int c = 0; c < D; ++c) {
      shift[k][c] = voxels.valid(k) ? load(field + c * problem.to_voxels() + voxels.index(k)) : 0;
    }
  }
#pragma unroll
  for (int k = 0; k < kPerThread; ++k) {
    locate_voxel(sampling, problem.from, voxels.row(k), voxels.column(k), shift[k], at[k]);
  }
}

template <typename S, Padding padding>
__global__ void __launch_bounds__(kThreads,
                                  kResidentOf<S> == 4 ? (padding == Padding::border ? 3 : 2) : 1)
    forward_kernel(Problem problem, ValueVoxels::FixedTiles tiles,
                   const S* moving,        // (N, C, *from)
                   const S* displacement,  // (N, D, *to)
                   S* warped) {            // (N, C, *to)
  using T = Arithmetic<S>;
  constexpr int kPerThread = ValueVoxels::kPerThread;
  const int32_t width = static_cast<int32_t>(problem.from[1]);
  const int64_t from = problem.from_voxels(), to = problem.to_voxels();
  ValueVoxels::grid_stride(tiles, [&](const ValueVoxels& voxels) {
    Neighbours<T> at[kPerThread][D];
    locate_voxels(problem, {Interpolation::linear, padding}, voxels, displacement, at);
    for (int64_t c = voxels.n * problem.channels; c < (voxels.n + 1) * problem.channels; ++c) {
      T sampled[kPerThread];
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        sampled[k] = corners_of(moving + c * from, width, at[k]).value(at[k]);
      }
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        if (voxels.valid(k)) store(warped + c * to + voxels.index(k), sampled[k]);
      }
    }
  });
}

// Voxels are copied as bytes, so that every dtype works.
template <typename V, typename U>
__global__ void __launch_bounds__(kThreads, kResident)
    nearest_kernel(Problem problem, ValueVoxels::FixedTiles tiles, V nan,
                   const V* moving,        // (N, C, *from)
                   const U* displacement,  // (N, D, *to)
                   V* warped) {            // (N, C, *to)
  constexpr int kPerThread = ValueVoxels::kPerThread;
  const int64_t from = problem.from_voxels(), to = problem.to_voxels();
  ValueVoxels::grid_stride(tiles, [&](const ValueVoxels& voxels) {
    Neighbours<Arithmetic<U>> at[kPerThread][D];
    locate_voxels(problem, problem.sampling, voxels, displacement, at);
    for (int64_t c = voxels.n * problem.channels; c < (voxels.n + 1) * problem.channels; ++c) {
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        const auto weight = at[k][0].low_weight * at[k][1].low_weight;
        V word = load_raw(moving + c * from + at[k][0].low * problem.from[1] + at[k][1].low);
        if (weight == 0) word = V{};
        if (!(weight == weight)) word = nan;
        if (voxels.valid(k)) store_raw(warped + c * to + voxels.index(k), word);
      }
    }
  });
}

template <typename S, bool is_linear, Padding padding>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    backward_kernel(Problem problem, GradientVoxels::FixedTiles tiles,
                    const S* gradient,           // (N, C, *to)
                    const S* moving,             // (N, C, *from)
                    const S* displacement,       // (N, D, *to)
                    Arithmetic<S>* grad_moving,  // (N, C, *from), zeros, or null
                    S* grad_displacement) {      // (N, D, *to) or null
  using T = Arithmetic<S>;
  constexpr int kPerThread = GradientVoxels::kPerThread;
  constexpr int64_t kFirst = INT64_MIN, kLast = INT64_MAX;  // every row is owned
  const int64_t stride[D] = {problem.from[1], 1};
  const int32_t width = static_cast<int32_t>(problem.from[1]);
  const int64_t from = problem.from_voxels(), to = problem.to_voxels();
  GradientVoxels::grid_stride(tiles, [&](const GradientVoxels& voxels) {
    Neighbours<T> at[kPerThread][D];
    constexpr Interpolation kInterpolation =
        is_linear ? Interpolation::linear : Interpolation::nearest;
    locate_voxels(problem, {kInterpolation, padding}, voxels, displacement, at);
    T sum[kPerThread][D] = {};
    for (int64_t c = voxels.n * problem.channels; c < (voxels.n + 1) * problem.channels; ++c) {
      T upstream[kPerThread];
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        upstream[k] = voxels.valid(k) ? load(gradient + c * to + voxels.index(k)) : 0;
      }
      if (grad_displacement) {
#pragma unroll
        for (int k = 0; k < kPerThread; ++k) {
          const auto corners = corners_of(moving + c * from, width, at[k]);
          sum[k][0] += passed_on(upstream[k], corners.template derivative<0>(at[k]));
          sum[k][1] += passed_on(upstream[k], corners.template derivative<1>(at[k]));
        }
      }
      if (grad_moving) {
#pragma unroll
        for (int k = 0; k < kPerThread; ++k) {
          if (!voxels.valid(k)) continue;
          splat<D>(grad_moving + c * from, stride, at[k], upstream[k], kFirst, kLast,
                   [](T* corner, T part) { atomicAdd(corner, part); });
        }
      }
    }
    if (!grad_displacement) return;
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      if (!voxels.valid(k)) continue;
      for (int d = 0; d < D; ++d) {
        store(grad_displacement + (voxels.n * D + d) * to + voxels.index(k), sum[k][d]);
      }
    }
  });
}

// The box of moving voxels that a tile of the fixed grid reads.
struct Box {
  double low[D], high[D];

  DIFFREG_DEVICE bool intersects(int64_t y, int64_t x) const {
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
    reduce_block<2 * D, Max>(reach);
    if (thread_index() != 0) continue;
    store_raw(boxes + tile, Box{{-reach[2], -reach[3]}, {reach[0], reach[1]}});
  }
}

// The voxels of one tile of the fixed grid, staged in shared memory: where they scatter to, and
// what.
template <typename T>
struct StagedTile {
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
  using Shared = StagedTile<T>;
  DIFFREG_SHARED(Shared, staged);
  const int64_t stride[D] = {problem.from[1], 1};
  for (int64_t index = blockIdx.x; index < owned.count(); index += gridDim.x) {
    const auto place = owned.place(index);
    const int64_t n = place.plane / problem.channels, to = problem.to_voxels();
    const int64_t y = place.y + threadIdx.y, x = place.x + threadIdx.x;
    T* own = grad_moving + place.plane * problem.from_voxels() + y * problem.from[1] + x;
    T sum = 0;
    for (int64_t tile = 0; tile < tiles.per_plane; ++tile) {
      if (!load_raw(boxes + n * tiles.per_plane + tile).intersects(place.y, place.x)) continue;
      const auto source = tiles.place(tile);
      const int64_t from_y = source.y + threadIdx.y, from_x = source.x + threadIdx.x;
      const int me = thread_index();
      staged.upstream[me] = 0;
      for (int k = 0; k < D; ++k) staged.at[me][k] = {};
      if (inside(from_y, problem.to[0]) && inside(from_x, problem.to[1])) {
        locate_voxel(problem, displacement + n * D * to, from_y, from_x, staged.at[me]);
        staged.upstream[me] = load(gradient + place.plane * to + from_y * problem.to[1] + from_x);
      }
      __syncthreads();
      for (int k = 0; k < kThreads; ++k) {
        splat<D>(own - y * problem.from[1] - x, stride, staged.at[k], staged.upstream[k], y, y + 1,
                 [&](T* corner, T part) { sum += corner == own ? part : T(0); });
      }
      __syncthreads();  // all threads have read this tile before the next one is staged
    }
    if (inside(y, problem.from[0]) && inside(x, problem.from[1])) store(own, sum);
  }
}

}  // namespace

template <typename S>
void launch_forward(const Problem& problem, const S* moving, const S* displacement, S* warped,
                    void* stream) {
  const ValueVoxels::FixedTiles tiles(problem.samples, problem.to[0], problem.to[1]);
  dispatch_padding(problem.sampling.padding, [&](auto padding) {
    DIFFREG_LAUNCH((forward_kernel<S, decltype(padding)::value>), tiles.count(), block_shape(),
                   stream, problem, tiles, moving, displacement, warped);
  });
}

template <typename V, typename U>
void launch_nearest(const Problem& problem, V nan, const V* moving, const U* displacement,
                    V* warped, void* stream) {
  const ValueVoxels::FixedTiles tiles(problem.samples, problem.to[0], problem.to[1]);
  DIFFREG_LAUNCH((nearest_kernel<V, U>), tiles.count(), block_shape(), stream, problem, tiles, nan,
                 moving, displacement, warped);
}

template <bool is_linear, typename S>
void launch_backward(const Problem& problem, const S* gradient, const S* moving,
                     const S* displacement, Arithmetic<S>* grad_moving, S* grad_displacement,
                     void* stream) {
  const GradientVoxels::FixedTiles tiles(problem.samples, problem.to[0], problem.to[1]);
  dispatch_padding(problem.sampling.padding, [&](auto padding) {
    DIFFREG_LAUNCH((backward_kernel<S, is_linear, decltype(padding)::value>), tiles.count(),
                   block_shape(), stream, problem, tiles, gradient, moving, displacement,
                   grad_moving, grad_displacement);
  });
}

template <typename S>
void launch_backward(const Problem& problem, const S* gradient, const S* moving,
                     const S* displacement, Arithmetic<S>* grad_moving, S* grad_displacement,
                     void* stream) {
  if (grad_moving) {
    const int64_t voxels = problem.samples * problem.channels * problem.from_voxels();
    zero(grad_moving, voxels * sizeof(Arithmetic<S>), stream);
  }
  const auto launch = problem.sampling.interpolation == Interpolation::linear
                          ? launch_backward<true, S>
                          : launch_backward<false, S>;
  launch(problem, gradient, moving, displacement, grad_moving, grad_displacement, stream);
}

int64_t gather_doubles(const Problem& problem) {
  const SmallTiles tiles(problem.samples, problem.to[0], problem.to[1]);
  return tiles.count() * (sizeof(Box) / sizeof(double));
}

template <typename S>
void launch_gather(const Problem& problem, const S* gradient, const S* displacement,
                   double* workspace, Arithmetic<S>* grad_moving, void* stream) {
  const SmallTiles tiles(problem.samples, problem.to[0], problem.to[1]);
  const SmallTiles owned(problem.samples * problem.channels, problem.from[0], problem.from[1]);
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
