// Images and fields walked down: a warp has 32 columns side by side, one a lane. It keeps the rows
// that a stencil reads again in registers, and takes what stands beside a voxel from the next lane.
// Called by the kernels with stencils.
#pragma once

#include "kernel.h"

namespace diffreg {

constexpr int kSteps = 32;  // rows of a walk
constexpr int kBatch = 4;   // rows that are read at once

// The strips of all planes (an image's channel or a field's sample), numbered along rows first; a
// tile is the eight that a block walks down. `before` and `after` lanes are there for the others to
// ask, and the first `back` steps for those that follow.
template <int before, int after, int back>
struct Strips {
  static constexpr int kWide = kColumns - before - after, kHigh = kSteps - back;

  int64_t planes;
  int32_t height, width, across;
  int64_t per_plane;  // tiles

  Strips(int64_t planes, int64_t height, int64_t width)
      : planes(planes),
        height(static_cast<int32_t>(height)),
        width(static_cast<int32_t>(width)),
        across(static_cast<int32_t>((width + kWide - 1) / kWide)),
        per_plane((across * ((height + kHigh - 1) / kHigh) + kWarps - 1) / kWarps) {}

  DIFFREG_HD int64_t count() const { return planes * per_plane; }

  // What a lane works on: rows [y, end) of column x, which may lie outside the image. Only where it
  // `owns` the column it gives results; a warp without a strip has no rows.
  struct Place {
    int64_t plane, within;  // within: number of the tile in its plane
    int32_t y, end, x;
    bool owns;
  };
  DIFFREG_DEVICE Place place(int64_t tile) const {
    const int64_t plane = tile / per_plane, within = tile - plane * per_plane;
    // The same for the warp, which the compiler does not know of threadIdx.y.
    const int32_t warp = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.y), 0);
    const int64_t strip = within * kWarps + warp, down = strip / across, first = down * kHigh;
    const int32_t y = first < height ? static_cast<int32_t>(first) : height;
    const int32_t lane = threadIdx.x;
    const int32_t x = static_cast<int32_t>(strip - down * across) * kWide + lane - before;
    const bool asks = before <= lane && lane < kColumns - after;
    return {plane, within, y, y < height - kHigh ? y + kHigh : height, x, asks && inside(x, width)};
  }
};

// A column of a plane to read; beyond the image its border repeats. No plane, no column.
template <typename S>
struct Column {
  const S* top;
  int32_t height, width;

  DIFFREG_DEVICE Column(const S* plane, int32_t height, int32_t width, int32_t x)
      : top(plane ? plane + clamped(x, width) : nullptr), height(height), width(width) {}

  // Row y, which lies in the image where `inner` says so.
  DIFFREG_DEVICE Arithmetic<S> at(int32_t y, bool inner = false) const {
    return load(row_of(top, inner ? y : clamped(y, height), width));
  }
};

// What the lane `by` columns further has. Every lane of the warp asks.
template <typename T>
DIFFREG_DEVICE T from_right(T value, int by = 1) {
  return __shfl_down_sync(0xffffffffu, value, by);
}
template <typename T>
DIFFREG_DEVICE T from_left(T value, int by = 1) {
  return __shfl_up_sync(0xffffffffu, value, by);
}

// Calls step(y, row, inner) for the rows from `first` on, kBatch at a time until `end` is reached:
// what read(y, inner) gives for them is asked for together. inner is true for a batch of rows in
// [0, inside), a constant, so that what depends on it costs nothing there.
template <typename Read, typename Step>
DIFFREG_DEVICE void walk(int32_t first, int32_t end, int32_t inside, const Read& read,
                         const Step& step) {
#pragma unroll 1
  for (int32_t y = first; y < end; y += kBatch) {
    const auto batch = [&](bool inner) {
      decltype(read(y, inner)) row[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) row[k] = read(y + k, inner);
#pragma unroll
      for (int k = 0; k < kBatch; ++k) step(y + k, row[k], inner);
    };
    if (0 <= y && y + kBatch <= inside) {
      batch(true);
    } else {
      batch(false);
    }
  }
}

}  // namespace diffreg
