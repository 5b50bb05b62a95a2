// Stencils on images and fields that march down the rows: a warp has 32 columns side by side, one a
// lane, keeps a rolling window of rows in registers (2.5-D blocking), and gets what stands beside a
// voxel from the next lane by a shuffle. No shared memory, no barrier.
#pragma once

#include "kernel.h"
#include "shuffle.h"

namespace diffreg {

constexpr int kMarchRows = 32;  // of a strip, halo included
constexpr int kBatch = 4;       // rows whose loads are in flight at once

// The strips of all planes (an image's channel or a field's sample), numbered along rows first; a
// tile is the eight of a block, a warp each. Its halo: `left_halo` and `right_halo` lanes, there
// for the others' shuffles, and the first `top_halo` rows, for those that follow.
template <int left_halo, int right_halo, int top_halo>
struct Strips {
  static constexpr int kOwnedColumns = kColumns - left_halo - right_halo;
  static constexpr int kOwnedRows = kMarchRows - top_halo;

  int64_t planes;
  int32_t height, width, across;
  int64_t per_plane;  // tiles

  Strips(int64_t planes, int64_t height, int64_t width)
      : planes(planes),
        height(static_cast<int32_t>(height)),
        width(static_cast<int32_t>(width)),
        across(static_cast<int32_t>((width + kOwnedColumns - 1) / kOwnedColumns)),
        per_plane((across * ((height + kOwnedRows - 1) / kOwnedRows) + kWarps - 1) / kWarps) {}

  DIFFREG_HD int64_t count() const { return planes * per_plane; }

  // What a lane works on: rows [y, end) of column x, which may lie outside the image. It stores
  // results only where it `owns` the column, not in the halo; a warp without a strip has no rows.
  struct Place {
    int64_t plane, within;  // within: number of the tile in its plane
    int32_t y, end, x;
    bool owns;
  };
  DIFFREG_DEVICE Place place(int64_t tile) const {
    const int64_t plane = tile / per_plane, within = tile - plane * per_plane;
    const int32_t warp = warp_uniform(static_cast<int32_t>(threadIdx.y));
    const int64_t strip = within * kWarps + warp, down = strip / across, first = down * kOwnedRows;
    const int32_t y = first < height ? static_cast<int32_t>(first) : height;
    const int32_t lane = threadIdx.x;
    const int32_t x =
        static_cast<int32_t>(strip - down * across) * kOwnedColumns + lane - left_halo;
    const bool in_halo = !(left_halo <= lane && lane < kColumns - right_halo);
    return {plane, within,
            y,     y < height - kOwnedRows ? y + kOwnedRows : height,
            x,     !in_halo && inside(x, width)};
  }
};

// The strips of a problem's planes.
template <typename Shape, typename Problem>
Shape strips_of(const Problem& problem) {
  return {problem.planes(), problem.height, problem.width};
}

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

// Calls step(y, row, inner) for the rows from `first` on, kBatch at a time until `end` is reached:
// what read(y, inner) loads for them is in flight together. inner is true for a batch of rows in
// [0, inside), a constant, so that what depends on it costs nothing there.
template <typename Read, typename Step>
DIFFREG_DEVICE void march(int32_t first, int32_t end, int32_t inside, const Read& read,
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
