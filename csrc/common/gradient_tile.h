// Image gradients out of a tile in shared memory, and their adjoint, which each voxel gathers from
// its neighbours' slopes. Called by gradient_scale.cu and parallel_level_sets.cu.
#pragma once

#include "central_difference.h"
#include "tile.h"

namespace diffreg {

// As many as slopes of the arithmetic's type, 512 bytes of image wide, find shared memory for.
constexpr int kGradientRows = 20;
template <typename S>
using GradientTiles = Tiles<kTileColumns<S>, kGradientRows>;

// Images with `halo` voxels around the tile; beyond an image its border repeats, so that a central
// difference needs no case of its own there.
template <typename S, int images, int halo>
struct ImageTile {
  using T = Arithmetic<S>;
  Halo<S, kTileColumns<S> + 2 * halo, kGradientRows + 2 * halo> image[images];

  DIFFREG_DEVICE void fill(int k, const S* plane, const GradientTiles<S>& tiles, int64_t y,
                           int64_t x) {
    image[k].fill_repeating(plane, tiles.height, tiles.width, y - halo, x - halo);
  }
  // Gradient of image k at (row, column) of the tile, which may lie up to halo - 1 outside.
  DIFFREG_DEVICE void gradient(int k, int row, int column, T* g) const {
    const auto& voxels = image[k];
    const int y = row + halo, x = column + halo;
    g[0] = central_difference(voxels.at(y - 1, x), voxels.at(y + 1, x));
    g[1] = central_difference(voxels.at(y, x - 1), voxels.at(y, x + 1));
  }
};

// Gradient to one derivative at the voxels of a tile and one around it.
template <typename S>
struct Slopes {
  static constexpr int kWide = kTileColumns<S> + 2, kHigh = kGradientRows + 2;
  static constexpr int kVoxels = kWide * kHigh;
  Arithmetic<S> voxel[kVoxels];

  // (row, column) of the tile.
  DIFFREG_DEVICE Arithmetic<S> at(int row, int column) const {
    return voxel[(row + 1) * kWide + column + 1];
  }
};

// First the images, then, in the same memory, the slopes.
template <typename S, int images>
union GradientMemory {
  ImageTile<S, images, 2> pixels;
  Slopes<S> slopes[2];  // to the derivative along each axis
};

// The image gradient's adjoint at (row, column) of the tile, voxel (y, x). Slopes outside the
// image are 0.
template <typename S, int images>
DIFFREG_DEVICE Arithmetic<S> adjoint(const GradientMemory<S, images>& memory,
                                     const GradientTiles<S>& tiles, int row, int column, int64_t y,
                                     int64_t x) {
  using T = Arithmetic<S>;
  T sum = 0;
#pragma unroll
  for (int k = -1; k <= 1; ++k) {
    sum += adjoint_weight<T>(y, y + k, tiles.height) * memory.slopes[0].at(row + k, column) +
           adjoint_weight<T>(x, x + k, tiles.width) * memory.slopes[1].at(row, column + k);
  }
  return sum;
}

// Replaces the images by slope(row, column, y, x, p), which writes the gradient to both derivatives
// at a voxel inside the image. Every thread of the block calls it.
template <typename S, int images, typename Slope>
DIFFREG_DEVICE void replace_by_slopes(GradientMemory<S, images>& memory,
                                      const GradientTiles<S>& tiles, int64_t y0, int64_t x0,
                                      const Slope& slope) {
  constexpr int kVoxels = Slopes<S>::kVoxels, kWide = Slopes<S>::kWide;
  constexpr int kEach = (kVoxels + kThreads - 1) / kThreads;
  Arithmetic<S> kept[kEach][2];
  // Counted on: a quotient and a rest for each k would all be kept in registers.
  int row = thread_index() / kWide, column = thread_index() % kWide;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int voxel = thread_index() + k * kThreads;
    kept[k][0] = kept[k][1] = 0;
    if (voxel >= kVoxels) continue;
    const int64_t y = y0 + row - 1, x = x0 + column - 1;
    if (inside(y, tiles.height) && inside(x, tiles.width)) {
      slope(row - 1, column - 1, y, x, kept[k]);
    }
    row += kThreads / kWide;
    column += kThreads % kWide;
    if (column >= kWide) {
      column -= kWide;
      ++row;
    }
    asm volatile("" ::: "memory");  // one voxel after the other: all at once would spill
  }
  __syncthreads();  // all images have been read
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int voxel = thread_index() + k * kThreads;
    if (voxel >= kVoxels) continue;
    memory.slopes[0].voxel[voxel] = kept[k][0];
    memory.slopes[1].voxel[voxel] = kept[k][1];
  }
  __syncthreads();
}

}  // namespace diffreg
