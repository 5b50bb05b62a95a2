// Image gradients out of a tile in shared memory, and their adjoint, which each voxel gathers from
// its neighbours' slopes. Called by gradient_scale.cu and parallel_level_sets.cu.
#pragma once

#include "central_difference.h"
#include "tile.h"

namespace diffreg {

// Slopes are kept in the arithmetic type, so its size decides how many fit.
// Rows are as many as a thread's slopes find registers for.
constexpr int kGradientRows = 20;
template <typename S>
constexpr int kGradientColumns = 512 / sizeof(Arithmetic<S>);
template <typename S>
using GradientTiles = Tiles<kGradientColumns<S>, kGradientRows>;

// Images with `halo` voxels around the tile; beyond an image its border repeats, so that a central
// difference needs no case of its own there.
template <typename S, int images, int halo>
struct ImageTile {
  using T = Arithmetic<S>;
  Halo<S, kGradientColumns<S> + 2 * halo, kGradientRows + 2 * halo> image[images];

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

// Gradient to both derivatives at the voxels of a tile and one around it.
template <typename S>
struct SlopeTile {
  using T = Arithmetic<S>;
  static constexpr int kWide = kGradientColumns<S> + 2, kHigh = kGradientRows + 2;
  T axis0[kHigh][kWide], axis1[kHigh][kWide];

  // The image gradient's adjoint at (row, column) of the tile, voxel (y, x). Slopes outside the
  // image are 0.
  DIFFREG_DEVICE T adjoint(int row, int column, int64_t y, int64_t x, int64_t height,
                           int64_t width) const {
    T sum = 0;
#pragma unroll
    for (int k = -1; k <= 1; ++k) {
      sum += adjoint_weight<T>(y, y + k, height) * axis0[row + 1 + k][column + 1] +
             adjoint_weight<T>(x, x + k, width) * axis1[row + 1][column + 1 + k];
    }
    return sum;
  }
};

// First the images, then, in the same memory, the slopes.
template <typename S, int images>
union GradientMemory {
  ImageTile<S, images, 2> pixels;
  SlopeTile<S> slopes;
};

// Replaces the images by slope(row, column, y, x, p), which writes the gradient to both derivatives
// at a voxel inside the image. Every thread of the block calls it.
template <typename S, int images, typename Slope>
DIFFREG_DEVICE void replace_by_slopes(GradientMemory<S, images>& memory,
                                      const GradientTiles<S>& tiles, int64_t y0, int64_t x0,
                                      const Slope& slope) {
  using T = Arithmetic<S>;
  constexpr int kWide = SlopeTile<S>::kWide, kVoxels = kWide * SlopeTile<S>::kHigh;
  constexpr int kEach = (kVoxels + kThreads - 1) / kThreads;
  T kept[kEach][2];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int voxel = thread_index() + k * kThreads;
    const int row = voxel / kWide - 1, column = voxel % kWide - 1;
    kept[k][0] = kept[k][1] = 0;
    if (!inside(y0 + row, tiles.height) || !inside(x0 + column, tiles.width)) continue;
    if (voxel < kVoxels) slope(row, column, y0 + row, x0 + column, kept[k]);
    asm volatile("" ::: "memory");  // one voxel after the other: all at once would spill
  }
  __syncthreads();  // all images have been read
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int voxel = thread_index() + k * kThreads;
    if (voxel >= kVoxels) continue;
    memory.slopes.axis0[voxel / kWide][voxel % kWide] = kept[k][0];
    memory.slopes.axis1[voxel / kWide][voxel % kWide] = kept[k][1];
  }
  __syncthreads();
}

}  // namespace diffreg
