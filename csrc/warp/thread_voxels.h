// CUDA only: the voxels of the fixed grid that a block and a thread of it work on.
#pragma once

#include <type_traits>

#include "../common/tile.h"
#include "points.h"

namespace diffreg::warp {

// What a block works on: a thread has voxels in four steps along axis 0, and in each two a warp
// apart. In a volume a block's planes share what they read of moving.
template <int D>
using FixedTiles = std::conditional_t<D == 2, GridTiles<4 * kRows, 2 * kColumns>,
                                      GridTiles<4, kRows, 2 * kColumns>>;

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

// Where voxels land by a displacement: p + u(p). What else stands for it is `field` below.
template <int D, typename S>
struct Displaced {
  using Type = Arithmetic<S>;
  const S* displacement;  // (N, D, *to)

  // Resident blocks of a kernel.
  template <typename Point>
  static constexpr int blocks() {
    return Point::kBlocks;
  }
  // What a thread keeps for its voxels of a tile.
  DIFFREG_DEVICE const Displaced& points(int64_t, const int32_t*) const { return *this; }
  DIFFREG_DEVICE static constexpr bool displaced() { return true; }

  // Writes the point where a voxel lands, and gives 0, or NaN where that is not finite.
  DIFFREG_DEVICE Type land(const int32_t* voxel, const Type* shift, Type* point) const {
    Type bad = 0;
    for (int k = 0; k < D; ++k) {
      point[k] = static_cast<Type>(voxel[k]) + shift[k];
      bad = k == 0 ? poison(shift[0]) : bad + poison(shift[k]);
    }
    return bad;
  }
};

struct Nothing {
  template <typename... Any>
  DIFFREG_DEVICE void operator()(const Any&...) const {}
};

// The voxels of the fixed grid that a thread works on at once (thread coarsening): in some steps
// along axis 0, `together` a warp apart in each. Their loads are in flight together.
template <int D, int steps, int together>
struct ThreadVoxels {
  static constexpr int kCount = steps * together;
  static constexpr int32_t kStep = D == 2 ? kRows : 1;

  int32_t start[D], size[D];   // the first of them, and the fixed grid's
  int64_t in_field, in_image;  // where that stands: in the displacement, in the first channel
  int64_t in_moving;           // where the sample's first channel of moving begins

  // Calls run(voxels, points) for the tiles of the block, in a grid-stride loop, some steps after
  // the other, and finish(tile, points) behind each tile.
  template <typename Field, typename Run, typename Finish = Nothing>
  DIFFREG_DEVICE static void grid_stride(const Problem<D>& problem, const FixedTiles<D>& tiles,
                                         const Field& field, const Run& run,
                                         const Finish& finish = {}) {
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
      voxels.in_moving = place.sample * problem.image_stride;
      const auto& points = field.points(place.sample, voxels.start);
#pragma unroll 1
      for (int step = 0; step < 4; step += steps) {
#pragma unroll
        for (int column = 0; column < 2; column += together) {
          run(voxels, points);
          voxels.move<D - 1>(together * kColumns);
        }
        voxels.move<D - 1>(-2 * kColumns);
        voxels.template move<0>(steps * kStep);
      }
      finish(tile, points);
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

  // Component c of the k-th one's displacement.
  template <typename Points>
  DIFFREG_DEVICE auto shift(const Problem<D>& problem, const Points& points, int c, int k) const {
    return load(points.displacement + in_field + c * problem.to_voxels + offset(k));
  }

  // Where they land; where a thread has no voxel, some other's place.
  template <typename Point, typename Points>
  DIFFREG_DEVICE void locate(const Problem<D>& problem, const Points& points, Point* at) const {
    using T = typename Points::Type;
    T shift[kCount][D];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      for (int c = 0; c < D; ++c) {
        shift[k][c] = points.displaced() && valid(k) ? this->shift(problem, points, c, k) : 0;
      }
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      int32_t voxel[D];
      for (int axis = 0; axis < D; ++axis) voxel[axis] = along(axis, k);
      T point[D];
      const T bad = points.land(voxel, shift[k], point);
      at[k] = Point(problem, point, bad);
    }
  }
};

}  // namespace diffreg::warp
