// W(p) = moving(p + u(p)) and its gradients. A thread works on a few voxels of the fixed grid at
// once, rows are coalesced; what moving is read twice for comes out of the cache.
#include "../common/block_reduce.h"
#include "../common/tile.h"
#include "points.h"

namespace diffreg::warp {
namespace {

// What a block works on: a thread has voxels in four steps along axis 0, and in each two a warp
// apart. In a volume a block's planes share what they read of moving.
template <int D>
using FixedTiles = std::conditional_t<D == 2, GridTiles<4 * kRows, 2 * kColumns>,
                                      GridTiles<4, kRows, 2 * kColumns>>;
// One voxel a thread, where a block gathers.
template <int D>
using SmallTiles =
    std::conditional_t<D == 2, GridTiles<kRows, kColumns>, GridTiles<1, kRows, kColumns>>;

// Moves a tile's first voxel to this thread's.
template <int D>
DIFFREG_DEVICE void move_to_thread(int32_t* voxel) {
  voxel[D - 2] += static_cast<int32_t>(threadIdx.y);
  voxel[D - 1] += static_cast<int32_t>(threadIdx.x);
}

template <int D>
DIFFREG_DEVICE int64_t raster_index(const int32_t* voxel, const int32_t* size) {
  int64_t index = voxel[0];
  for (int k = 1; k < D; ++k) index = index * size[k] + voxel[k];
  return index;
}

template <int D>
DIFFREG_DEVICE bool inside_all(const int32_t* voxel, const int32_t* size) {
  bool all = inside_axis(voxel[0], size[0]);
  for (int k = 1; k < D; ++k) all &= inside_axis(voxel[k], size[k]);
  return all;
}

// The voxels of the fixed grid that a thread works on at once (thread coarsening): in some steps
// along axis 0, `together` a warp apart in each. Their loads are in flight together.
template <int D, int steps, int together>
struct ThreadVoxels {
  static constexpr int kCount = steps * together;
  static constexpr int32_t kStep = D == 2 ? kRows : 1;

  int32_t start[D], size[D];   // the first of them, and the fixed grid's
  int64_t in_field, in_image;  // where that stands: in the displacement, in the first channel
  int64_t in_moving;           // where the sample's first channel of moving begins

  // Calls run(voxels) for the tiles of the block, in a grid-stride loop, some steps after the
  // other.
  template <typename Run>
  DIFFREG_DEVICE static void grid_stride(const Problem<D>& problem, const FixedTiles<D>& tiles,
                                         const Run& run) {
    for (int64_t tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
      const auto place = tiles.place(tile);
      ThreadVoxels voxels;
      for (int k = 0; k < D; ++k) {
        voxels.start[k] = place.first[k];
        voxels.size[k] = problem.to[k];
      }
      move_to_thread<D>(voxels.start);
      const int64_t first = raster_index<D>(voxels.start, problem.to);
      const int64_t plane = place.sample * problem.channels;
      voxels.in_field = place.sample * D * problem.to_voxels + first;
      voxels.in_image = plane * problem.to_voxels + first;
      voxels.in_moving = plane * problem.from_voxels;
#pragma unroll 1
      for (int step = 0; step < 4; step += steps) {
#pragma unroll
        for (int column = 0; column < 2; column += together) {
          run(voxels);
          voxels.move<D - 1>(together * kColumns);
        }
        voxels.move<D - 1>(-2 * kColumns);
        voxels.template move<0>(steps * kStep);
      }
    }
  }
  DIFFREG_DEVICE void renew() {
    for (int k = 0; k < D; ++k) warp::renew(start[k]);
  }
  template <int axis>
  DIFFREG_DEVICE void move(int32_t by) {
    start[axis] += by;
    in_field += by * stride(axis);
    in_image += by * stride(axis);
  }
  DIFFREG_DEVICE int64_t stride(int axis) const {
    int64_t voxels = 1;
    for (int k = axis + 1; k < D; ++k) voxels *= size[k];
    return voxels;
  }
  DIFFREG_DEVICE int32_t along(int axis, int k) const {
    return start[axis] + (axis == 0 ? k / together * kStep : 0) +
           (axis == D - 1 ? k % together * kColumns : 0);
  }
  // From the first one.
  DIFFREG_DEVICE int64_t offset(int k) const {
    return k / together * kStep * stride(0) + k % together * kColumns;
  }
  DIFFREG_DEVICE bool valid(int k) const {
    int32_t voxel[D];
    for (int axis = 0; axis < D; ++axis) voxel[axis] = along(axis, k);
    return inside_all<D>(voxel, size);
  }

  // Where they land; where a thread has no voxel, some other's place.
  template <typename Point, typename S>
  DIFFREG_DEVICE void locate(const Problem<D>& problem,
                             const S* displacement,  // (N, D, *to)
                             Point* at) const {
    const S* field = displacement + in_field;
    Arithmetic<S> shift[kCount][D];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      for (int c = 0; c < D; ++c) {
        shift[k][c] = valid(k) ? load(field + c * problem.to_voxels + offset(k)) : 0;
      }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      int32_t voxel[D];
      for (int axis = 0; axis < D; ++axis) voxel[axis] = along(axis, k);
      at[k] = Point(problem, voxel, shift[k]);
    }
  }
};

template <int D, typename S, typename G, typename Point>
__global__ void __launch_bounds__(kThreads, Point::kBlocks)
    forward_kernel(Problem<D> problem, FixedTiles<D> tiles,
                   const S* moving,        // (N, C, *from)
                   const S* displacement,  // (N, D, *to)
                   G* warped) {            // (N, C, *to)
  using T = Arithmetic<S>;
  using Voxels = ThreadVoxels<D, Point::kSteps, Point::kTogether>;
  Voxels::grid_stride(problem, tiles, [&](Voxels voxels) {
    Point at[Voxels::kCount];
    voxels.locate(problem, displacement, at);
    const S* image = moving + voxels.in_moving;
    G* out = warped + voxels.in_image;
    for (int64_t c = 0;;) {
      T sampled[Voxels::kCount];
#pragma unroll
      for (int k = 0; k < Voxels::kCount; ++k) sampled[k] = at[k].value(problem, image);
#pragma unroll
      for (int k = 0; k < Voxels::kCount; ++k) {
        if (voxels.valid(k)) store(out + voxels.offset(k), sampled[k]);
      }
      if (++c == problem.channels) break;
      if constexpr (Point::kIsLinear) {
        voxels.renew();
        for (Point& point : at) point.renew();
      }
      image += problem.from_voxels;
      out += problem.to_voxels;
    }
  });
}

// Voxels are copied as bytes, so that every dtype works.
template <int D, typename V, typename U>
__global__ void __launch_bounds__(kThreads, kResident)
    nearest_kernel(Problem<D> problem, FixedTiles<D> tiles, V nan,
                   const V* moving,        // (N, C, *from)
                   const U* displacement,  // (N, D, *to)
                   V* warped) {            // (N, C, *to)
  using Point = NearestPoint<D, Arithmetic<U>>;
  using Voxels = ThreadVoxels<D, Point::kSteps, Point::kTogether>;
  Voxels::grid_stride(problem, tiles, [&](const Voxels& voxels) {
    Point at[Voxels::kCount];
    voxels.locate(problem, displacement, at);
    const V* image = moving + voxels.in_moving;
    V* out = warped + voxels.in_image;
    for (int64_t c = 0; c < problem.channels; ++c) {
#pragma unroll
      for (int k = 0; k < Voxels::kCount; ++k) {
        V word = load_raw(image + at[k].voxel);
        if (at[k].weight == 0) word = V{};
        if (!(at[k].weight == at[k].weight)) word = nan;
        if (voxels.valid(k)) store_raw(out + voxels.offset(k), word);
      }
      image += problem.from_voxels;
      out += problem.to_voxels;
    }
  });
}

template <int D, typename S, typename G, typename Point>
__global__ void __launch_bounds__(kThreads, Point::kBackwardBlocks)
    backward_kernel(Problem<D> problem, FixedTiles<D> tiles,
                    const G* gradient,           // (N, C, *to)
                    const S* moving,             // (N, C, *from)
                    const S* displacement,       // (N, D, *to)
                    Arithmetic<S>* grad_moving,  // (N, C, *from), zeros, or null
                    G* grad_displacement,        // (N, D, *to) or null
                    bool accumulate) {
  using T = Arithmetic<S>;
  using Voxels = ThreadVoxels<D, Point::kBackwardSteps, Point::kTogether>;
  Voxels::grid_stride(problem, tiles, [&](Voxels voxels) {
    Point at[Voxels::kCount];
    voxels.locate(problem, displacement, at);
    T sum[Voxels::kCount][D];
    for (auto& one : sum) {
      for (T& component : one) component = -T(0);  // to which the first channel adds nothing
    }
    const G* upstreams = gradient + voxels.in_image;
    int64_t image = voxels.in_moving;
    for (int64_t c = 0;;) {
      T upstream[Voxels::kCount];
#pragma unroll
      for (int k = 0; k < Voxels::kCount; ++k) {
        upstream[k] = voxels.valid(k) ? load(upstreams + voxels.offset(k)) : 0;
      }
      if (grad_displacement) {
#pragma unroll
        for (int k = 0; k < Voxels::kCount; ++k) {
          T found[D];
          at[k].derivatives(problem, moving + image, found);
          for (int d = 0; d < D; ++d) sum[k][d] += passed_on(upstream[k], found[d]);
        }
      }
      if (grad_moving) {
#pragma unroll
        for (int k = 0; k < Voxels::kCount; ++k) {
          if (!voxels.valid(k)) continue;
          at[k].add_to(problem, grad_moving + image, upstream[k]);
        }
      }
      if (++c == problem.channels) break;
      if constexpr (Point::kIsLinear) {
        voxels.renew();
        for (Point& point : at) point.renew();
      }
      image += problem.from_voxels;
      upstreams += problem.to_voxels;
    }
    if (!grad_displacement) return;
    G* out = grad_displacement + voxels.in_field;
#pragma unroll
    for (int k = 0; k < Voxels::kCount; ++k) {
      if (!voxels.valid(k)) continue;
      for (int d = 0; d < D; ++d) {
        G* to = out + d * problem.to_voxels + voxels.offset(k);
        store(to, accumulate ? load(to) + sum[k][d] : sum[k][d]);
      }
    }
  });
}

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
  Arithmetic<S> shift[D];
  for (int k = 0; k < D; ++k) shift[k] = load(field + k * problem.to_voxels);
  const auto bad = poison_of<D>(shift);
  for (int k = 0; k < D; ++k) {
    at[k] = Footprint<Arithmetic<S>, count>(
        problem.sampling, static_cast<Arithmetic<S>>(voxel[k]) + shift[k], bad, problem.from[k]);
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

// Calls run(Point*) with the type of the points that `sampling` asks for.
template <int D, typename T, typename Run>
void dispatch_point(const Sampling& sampling, const Run& run) {
  switch (sampling.interpolation) {
    case Interpolation::nearest: return run(static_cast<NearestPoint<D, T>*>(nullptr));
    case Interpolation::cubic: return run(static_cast<CubicPoint<D, T>*>(nullptr));
    case Interpolation::linear:
      dispatch_padding(sampling.padding, [&](auto padding) {
        run(static_cast<LinearPoint<D, T, decltype(padding)::value>*>(nullptr));
      });
  }
}
template <typename Pointer>
using PointOf = std::remove_pointer_t<Pointer>;

}  // namespace

template <int D, typename S, typename G>
void launch_forward(const Problem<D>& problem, const S* moving, const S* displacement, G* warped,
                    void* stream) {
  const FixedTiles<D> tiles(problem.samples, problem.to);
  dispatch_point<D, Arithmetic<S>>(problem.sampling, [&](auto* point) {
    using Point = PointOf<decltype(point)>;
    constexpr bool kNearest = std::is_same_v<Point, NearestPoint<D, Arithmetic<S>>>;
    if constexpr (!kNearest && (std::is_same_v<S, G> || Point::kIsLinear)) {
      DIFFREG_LAUNCH((forward_kernel<D, S, G, Point>), tiles.count(), block_shape(), stream,
                     problem, tiles, moving, displacement, warped);
    }
  });
}

template <int D, typename V, typename U>
void launch_nearest(const Problem<D>& problem, V nan, const V* moving, const U* displacement,
                    V* warped, void* stream) {
  const FixedTiles<D> tiles(problem.samples, problem.to);
  DIFFREG_LAUNCH((nearest_kernel<D, V, U>), tiles.count(), block_shape(), stream, problem, tiles,
                 nan, moving, displacement, warped);
}

template <int D, typename S, typename G>
void launch_backward(const Problem<D>& problem, const G* gradient, const S* moving,
                     const S* displacement, Arithmetic<S>* grad_moving, G* grad_displacement,
                     bool accumulate, void* stream) {
  if (grad_moving) {
    const int64_t voxels = problem.samples * problem.channels * problem.from_voxels;
    zero(grad_moving, voxels * sizeof(Arithmetic<S>), stream);
  }
  const FixedTiles<D> tiles(problem.samples, problem.to);
  dispatch_point<D, Arithmetic<S>>(problem.sampling, [&](auto* point) {
    using Point = PointOf<decltype(point)>;
    if constexpr (std::is_same_v<S, G> || Point::kIsLinear) {
      DIFFREG_LAUNCH((backward_kernel<D, S, G, Point>), tiles.count(), block_shape(), stream,
                     problem, tiles, gradient, moving, displacement, grad_moving, grad_displacement,
                     accumulate);
    }
  });
}

template <int D>
int64_t gather_doubles(const Problem<D>& problem) {
  const SmallTiles<D> tiles(problem.samples, problem.to);
  const Groups groups(tiles.per_sample);
  return problem.samples * (groups.tiles + groups.count) * (sizeof(Box<D>) / sizeof(double));
}

template <int count, int D, typename S>
void launch_gather(const Problem<D>& problem, const S* gradient, const S* displacement,
                   double* workspace, Arithmetic<S>* grad_moving, void* stream) {
  const SmallTiles<D> tiles(problem.samples, problem.to);
  const SmallTiles<D> owned(problem.samples * problem.channels, problem.from);
  const Groups groups(tiles.per_sample);
  Box<D>* boxes = reinterpret_cast<Box<D>*>(workspace);
  Box<D>* group_boxes = boxes + tiles.count();
  DIFFREG_LAUNCH((boxes_kernel<D, S, count>), tiles.count(), block_shape(), stream, problem, tiles,
                 displacement, boxes);
  DIFFREG_LAUNCH(groups_kernel<D>, problem.samples * groups.count, block_shape(), stream, groups,
                 problem.samples, boxes, group_boxes);
  DIFFREG_LAUNCH((gather_kernel<D, S, count>), owned.count(), block_shape(), stream, problem, owned,
                 tiles, groups, gradient, displacement, boxes, group_boxes, grad_moving);
}

template <int D, typename S>
void launch_gather(const Problem<D>& problem, const S* gradient, const S* displacement,
                   double* workspace, Arithmetic<S>* grad_moving, void* stream) {
  const auto launch = problem.sampling.interpolation == Interpolation::cubic
                          ? launch_gather<4, D, S>
                          : launch_gather<2, D, S>;
  launch(problem, gradient, displacement, workspace, grad_moving, stream);
}

#define DIFFREG_NEAREST(D, V, S) \
  template void launch_nearest(const Problem<D>&, V, const V*, const S*, V*, void*);
#define DIFFREG_TO(D, S, G)                                                                      \
  template void launch_forward(const Problem<D>&, const S*, const S*, G*, void*);                \
  template void launch_backward(const Problem<D>&, const G*, const S*, const S*, Arithmetic<S>*, \
                                G*, bool, void*);
#define DIFFREG_INSTANCES(D, S)                                                               \
  template void launch_gather(const Problem<D>&, const S*, const S*, double*, Arithmetic<S>*, \
                              void*);                                                         \
  DIFFREG_TO(D, S, S)                                                                         \
  DIFFREG_NEAREST(D, uint8_t, S)                                                              \
  DIFFREG_NEAREST(D, uint16_t, S)                                                             \
  DIFFREG_NEAREST(D, uint32_t, S)                                                             \
  DIFFREG_NEAREST(D, uint64_t, S)                                                             \
  DIFFREG_NEAREST(D, TwoWords, S)
#define DIFFREG_DIMENSIONS(D)                         \
  template int64_t gather_doubles(const Problem<D>&); \
  DIFFREG_INSTANCES(D, float)                         \
  DIFFREG_INSTANCES(D, double)                        \
  DIFFREG_INSTANCES(D, Half)                          \
  DIFFREG_INSTANCES(D, BFloat16)                      \
  DIFFREG_TO(D, Half, float)                          \
  DIFFREG_TO(D, BFloat16, float)
DIFFREG_DIMENSIONS(2)
DIFFREG_DIMENSIONS(3)

}  // namespace diffreg::warp
