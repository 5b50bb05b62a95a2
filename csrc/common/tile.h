// Rectangular tiles of an image, in shared memory with a halo where a stencil re-reads.
#pragma once

#include "kernel.h"

namespace diffreg {

// 512 bytes a row, sixteen 32-byte sectors: a halo of a sector on each side costs an eighth.
template <typename S>
constexpr int kTileColumns = 512 / sizeof(S);
constexpr int kTileRows = 24;

// The tiles of all planes (an image's channel or a field's sample), numbered along rows first.
template <int columns, int rows>
struct Tiles {
  int64_t planes, height, width;

  struct Place {
    int64_t plane, within;  // within: number of the tile in its plane
    int64_t y, x;           // its first voxel
  };

  DIFFREG_HD int64_t across() const { return (width + columns - 1) / columns; }
  DIFFREG_HD int64_t per_plane() const { return across() * ((height + rows - 1) / rows); }
  DIFFREG_HD int64_t count() const { return planes * per_plane(); }
  DIFFREG_HD Place place(int64_t tile) const {
    const int64_t within = tile % per_plane();
    return {tile / per_plane(), within, within / across() * rows, within % across() * columns};
  }
};

// Voxels of one plane in shared memory, as they are stored; reading one gives it for arithmetic.
template <typename S, int columns, int rows>
struct Halo {
  S voxel[rows][columns];

  DIFFREG_DEVICE Arithmetic<S> at(int row, int column) const {
    return static_cast<Arithmetic<S>>(voxel[row][column]);
  }

  // From voxel (y, x) on; what lies outside the plane is left undefined.
  DIFFREG_DEVICE void fill(const S* plane, int64_t height, int64_t width, int64_t y, int64_t x) {
    for (int row = threadIdx.y; row < rows; row += kRows) {
      for (int column = threadIdx.x; column < columns; column += kColumns) {
        if (!inside(y + row, height) || !inside(x + column, width)) continue;
        voxel[row][column] = load_raw(plane + (y + row) * width + x + column);
      }
    }
  }

  // From voxel (y, x) on; what lies outside the plane repeats its border.
  DIFFREG_DEVICE void fill_repeating(const S* plane, int64_t height, int64_t width, int64_t y,
                                     int64_t x) {
    for (int row = threadIdx.y; row < rows; row += kRows) {
      for (int column = threadIdx.x; column < columns; column += kColumns) {
        const int64_t from = clamped(y + row, height) * width + clamped(x + column, width);
        voxel[row][column] = load_raw(plane + from);
      }
    }
  }
};

// Calls run(row, column) for the voxels of a tile that this thread works on.
template <int columns, int rows, typename Run>
DIFFREG_DEVICE void for_tile(const Run& run) {
#pragma unroll 1  // registers decide how many blocks are resident
  for (int row = threadIdx.y; row < rows; row += kRows) {
#pragma unroll 1
    for (int column = threadIdx.x; column < columns; column += kColumns) run(row, column);
  }
}

}  // namespace diffreg
