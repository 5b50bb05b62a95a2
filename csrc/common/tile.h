// Rectangular tiles of an image, numbered, for the kernels that do not march down columns
// (columns.h); their blocks go over them in a grid-stride loop.
#pragma once

#include "kernel.h"

namespace diffreg {

// The tiles of all planes (an image's channel or a field's sample), numbered along rows first.
template <int columns, int rows>
struct Tiles {
  int64_t planes, height, width, across, per_plane;

  Tiles(int64_t planes, int64_t height, int64_t width)
      : planes(planes),
        height(height),
        width(width),
        across((width + columns - 1) / columns),
        per_plane(across * ((height + rows - 1) / rows)) {}

  struct Place {
    int64_t plane, within;  // within: number of the tile in its plane
    int64_t y, x;           // its first voxel
  };

  DIFFREG_HD int64_t count() const { return planes * per_plane; }
  DIFFREG_HD Place place(int64_t tile) const {
    const int64_t plane = tile / per_plane, within = tile - plane * per_plane;
    const int64_t down = within / across;
    return {plane, within, down * rows, (within - down * across) * columns};
  }
};

// The tiles of a problem's planes.
template <typename Shape, typename Problem>
Shape tiles_of(const Problem& problem) {
  return {problem.planes(), problem.height, problem.width};
}

}  // namespace diffreg
