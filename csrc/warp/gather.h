// CUDA only: the gradient to moving in a fixed order. Boxes tell which tiles of the fixed grid
// reach a place of the moving one; then a thread a moving voxel gathers.
#pragma once

#include "../common/block_reduce.h"
#include "thread_voxels.h"

namespace diffreg::warp {

// One voxel a thread, where a block gathers.
template <int D>
using SmallTiles =
    std::conditional_t<D == 2, GridTiles<kRows, kColumns>, GridTiles<1, kRows, kColumns>>;

// The box of moving voxels that some voxels of the fixed grid reach.
template <int D>
struct Box {
  int32_t low[D], high[D];

  // Whether a tile of the moving grid has some of them.
  DIFFREG_DEVICE bool meets(const int32_t* first) const {
    bool all = true;
    for (int k = 0; k < D; ++k) {
      all &= low[k] < first[k] + SmallTiles<D>::extent(k) && high[k] >= first[k];
    }
    return all;
  }
};

// The box of all threads' boxes; thread 0 stores it.
template <int D>
DIFFREG_DEVICE void store_union(const Box<D>& own, Box<D>* whole) {
  double reach[2 * D];  // highest, and lowest with its sign changed
  for (int k = 0; k < D; ++k) {
    reach[k] = own.high[k];
    reach[D + k] = -double(own.low[k]);
  }
  reduce_block<2 * D, Max>(reach);
  if (thread_index() != 0) return;
  Box<D> found;
  for (int k = 0; k < D; ++k) {
    found.high[k] = static_cast<int32_t>(reach[k]);
    found.low[k] = static_cast<int32_t>(-reach[D + k]);
  }
  store_raw(whole, found);
}

// Meets nothing.
template <int D>
DIFFREG_DEVICE Box<D> empty_box() {
  Box<D> box;
  for (int k = 0; k < D; ++k) {
    box.low[k] = INT32_MAX;
    box.high[k] = -1;
  }
  return box;
}

template <int D>
DIFFREG_DEVICE void extend(Box<D>& box, int axis, int32_t low, int32_t high) {
  box.low[axis] = low < box.low[axis] ? low : box.low[axis];
  box.high[axis] = high > box.high[axis] ? high : box.high[axis];
}

// The voxels of one axis that a point's gradient goes to: 2, or of cubic interpolation 4.
template <typename T, int count>
struct Footprint {
  int32_t index[count];
  T weight[count];

  Footprint() = default;
  DIFFREG_DEVICE Footprint(const Sampling& sampling, T coordinate, T bad, int32_t size) {
    if constexpr (count == 2) {
      const Neighbours<T> at = warp::locate(sampling, coordinate, bad, size);
      index[0] = at.low;
      index[1] = at.high;
      weight[0] = at.low_weight;
      weight[1] = at.high_weight;
    } else {
      const CubicAxis<T> at(coordinate, bad, size, sampling.padding);
      for (int k = 0; k < count; ++k) {
        index[k] = at.tap(k).index;
        weight[k] = at.tap(k).weight;
      }
    }
  }

  // Of all that go to one voxel.
  DIFFREG_DEVICE T weight_at(int32_t voxel) const {
    T sum = 0;
    for (int k = 0; k < count; ++k) sum += index[k] == voxel ? weight[k] : T(0);
    return sum;
  }
};

template <int D, typename S, int count>
DIFFREG_DEVICE void locate_footprint(const Problem<D>& problem,
                                     const S* displacement,  // (D, *to) of one sample
                                     const int32_t* voxel, Footprint<Arithmetic<S>, count>* at) {
  const S* field = displacement + raster_index<D>(voxel, problem.to);
  using T = Arithmetic<S>;
  T shift[D], point[D];
  for (int k = 0; k < D; ++k) shift[k] = load(field + k * problem.to_voxels);
  const T bad = Displaced<D, S>{displacement}.land(voxel, shift, point);
  for (int k = 0; k < D; ++k) {
    at[k] = Footprint<T, count>(problem.sampling, point[k], bad, problem.from[k]);
  }
}

template <int D, typename S, int count>
__global__ void __launch_bounds__(kThreads, kResident)
    boxes_kernel(Problem<D> problem, SmallTiles<D> tiles,
                 const S* displacement,  // (N, D, *to)
                 Box<D>* boxes) {        // (N, tiles)
  for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
    auto place = tiles.place(tile);
    move_to_thread<D>(place.first);
    Box<D> box = empty_box<D>();
    if (inside_all<D>(place.first, problem.to)) {
      Footprint<Arithmetic<S>, count> at[D];
      locate_footprint(problem, displacement + place.sample * D * problem.to_voxels, place.first,
                       at);
      for (int k = 0; k < D; ++k) {
        for (int j = 0; j < count; ++j) extend(box, k, at[k].index[j], at[k].index[j]);
      }
    }
    store_union(box, boxes + tile);
  }
}

// Tiles of the fixed grid, and as many groups of them as a group has tiles: whoever looks for the
// tiles that reach a place asks the groups first.
struct Groups {
  int64_t tiles, tiles_each, count;  // of a sample

  explicit Groups(int64_t tiles_of_sample) : tiles(tiles_of_sample), tiles_each(1) {
    while (tiles_each * tiles_each < tiles) ++tiles_each;
    count = (tiles + tiles_each - 1) / tiles_each;
  }
  DIFFREG_DEVICE int64_t first(int64_t group) const { return group * tiles_each; }
  DIFFREG_DEVICE int64_t end(int64_t group) const {
    const int64_t next = first(group + 1);
    return next < tiles ? next : tiles;
  }
};

template <int D>
__global__ void __launch_bounds__(kThreads, kResident)
    groups_kernel(Groups groups, int64_t samples,
                  const Box<D>* boxes,    // (N, tiles)
                  Box<D>* group_boxes) {  // (N, groups)
  for (int64_t index = blockIdx.x; index < samples * groups.count; index += gridDim.x) {
    const int64_t sample = index / groups.count, group = index - sample * groups.count;
    Box<D> box = empty_box<D>();
    for (int64_t tile = groups.first(group) + thread_index(); tile < groups.end(group);
         tile += kThreads) {
      const Box<D> one = load_raw(boxes + sample * groups.tiles + tile);
      for (int k = 0; k < D; ++k) extend(box, k, one.low[k], one.high[k]);
    }
    store_union(box, group_boxes + index);
  }
}

// Calls run(tile) for the tiles of the fixed grid, in their order, that reach a tile of moving.
template <int D, typename Run>
DIFFREG_DEVICE void for_reaching_tiles(const Groups& groups, const int32_t* first,
                                       const Box<D>* boxes,        // (tiles) of one sample
                                       const Box<D>* group_boxes,  // (groups) of one sample
                                       const Run& run) {
  for (int64_t group = 0; group < groups.count; ++group) {
    if (!load_raw(group_boxes + group).meets(first)) continue;
    for (int64_t tile = groups.first(group); tile < groups.end(group); ++tile) {
      if (load_raw(boxes + tile).meets(first)) run(tile);
    }
  }
}

// The voxels of one tile of the fixed grid, staged in shared memory: where they scatter to, and
// what.
template <int D, typename T, int count>
struct StagedTile {
  Footprint<T, count> at[kThreads][D];
  T upstream[kThreads];
};

// A thread owns one voxel of the moving grid, and adds up what falls on it, tile by tile of the
// fixed grid and voxel by voxel: the same bits at every run.
template <int D, typename S, int count>
__global__ void __launch_bounds__(kThreads, kResident)
    gather_kernel(Problem<D> problem, SmallTiles<D> owned, SmallTiles<D> tiles, Groups groups,
                  const S* gradient,             // (N, C, *to)
                  const S* displacement,         // (N, D, *to)
                  const Box<D>* boxes,           // (N, tiles)
                  const Box<D>* group_boxes,     // (N, groups)
                  Arithmetic<S>* grad_moving) {  // (N, C, *from)
  using T = Arithmetic<S>;
  using Shared = StagedTile<D, T, count>;
  DIFFREG_SHARED(Shared, staged);
  for (int64_t index = blockIdx.x; index < owned.count(); index += gridDim.x) {
    const auto place = owned.place(index);
    const int64_t plane = place.sample, n = plane / problem.channels;
    int32_t own[D];
    for (int k = 0; k < D; ++k) own[k] = place.first[k];
    move_to_thread<D>(own);
    const auto stage = [&](int64_t tile) {
      auto source = tiles.place(tile);
      move_to_thread<D>(source.first);
      const int me = thread_index();
      staged.upstream[me] = 0;
      if (!inside_all<D>(source.first, problem.to)) return;
      locate_footprint(problem, displacement + n * D * problem.to_voxels, source.first,
                       staged.at[me]);
      staged.upstream[me] =
          load(gradient + plane * problem.to_voxels + raster_index<D>(source.first, problem.to));
    };
    // The leading axes' weights are the same for a warp: most voxels are left by all of it.
    const auto part_of = [&](int k) {
      T part = staged.upstream[k];
      for (int axis = 0; axis < D; ++axis) {
        if (part == 0) return T(0);
        const T weight = staged.at[k][axis].weight_at(own[axis]);
        part = counted(part * weight, weight);
      }
      return part;
    };
    T sum = 0;
    for_reaching_tiles(groups, place.first, boxes + n * groups.tiles,
                       group_boxes + n * groups.count, [&](int64_t tile) {
                         stage(tile);
                         __syncthreads();
                         for (int k = 0; k < kThreads; ++k) sum += part_of(k);
                         __syncthreads();  // all have read this tile before the next is staged
                       });
    if (inside_all<D>(own, problem.from)) {
      store(grad_moving + plane * problem.from_voxels + raster_index<D>(own, problem.from), sum);
    }
  }
}

}  // namespace diffreg::warp
