// CUDA only: an image sampled where the voxels of a field land.
#pragma once

#include "thread_voxels.h"

namespace diffreg::warp {

// Linear or cubic.
template <int D, typename S, typename G, typename Point, typename Field>
__global__ void __launch_bounds__(kThreads, Field::template blocks<Point>())
    forward_kernel(Problem<D> problem, FixedTiles<D> tiles, Field field,
                   const S* moving,  // (N or 1, C, *from)
                   G* warped) {      // (N, C, *to)
  using T = Arithmetic<S>;
  using Voxels = ThreadVoxels<D, Point::kSteps, Point::kTogether>;
  Voxels::grid_stride(problem, tiles, field, [&](Voxels voxels, const auto& points) {
    Point at[Voxels::kCount];
    voxels.locate(problem, points, at);
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
template <int D, typename V, typename Field>
__global__ void __launch_bounds__(kThreads, kResident)
    nearest_kernel(Problem<D> problem, FixedTiles<D> tiles, Field field, V nan,
                   const V* moving,  // (N or 1, C, *from)
                   V* warped) {      // (N, C, *to)
  using Point = NearestPoint<D, typename Field::Type>;
  using Voxels = ThreadVoxels<D, Point::kSteps, Point::kTogether>;
  Voxels::grid_stride(problem, tiles, field, [&](const Voxels& voxels, const auto& points) {
    Point at[Voxels::kCount];
    voxels.locate(problem, points, at);
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

}  // namespace diffreg::warp
