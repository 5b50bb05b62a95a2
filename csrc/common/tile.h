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

// The same of a grid of any number of axes: a tile has `extents` voxels along them, and tiles are
// numbered along the last axis first. Those of a sample are fewer than 2^32.
template <int... extents>
struct GridTiles {
  static constexpr int kAxes = sizeof...(extents);
  int64_t samples, per_sample = 1;
  uint32_t along[kAxes];

  GridTiles(int64_t samples, const int32_t* size) : samples(samples) {
    for (int k = 0; k < kAxes; ++k) {
      along[k] = static_cast<uint32_t>((size[k] + extent(k) - 1) / extent(k));
      per_sample *= along[k];
    }
  }

  struct Place {
    int64_t sample;
    int32_t first[kAxes];  // its first voxel
  };

  DIFFREG_HD static constexpr int32_t extent(int axis) {
    constexpr int32_t all[] = {extents...};
    return all[axis];
  }
  DIFFREG_HD int64_t count() const { return samples * per_sample; }
  DIFFREG_HD Place place(int64_t tile) const {
    Place place{tile / per_sample, {}};
    uint32_t rest = static_cast<uint32_t>(tile - place.sample * per_sample);
    DIFFREG_UNROLL
    for (int k = kAxes - 1; k > 0; --k) {
      const uint32_t before = rest / along[k];
      place.first[k] = static_cast<int32_t>(rest - before * along[k]) * extent(k);
      rest = before;
    }
    place.first[0] = static_cast<int32_t>(rest) * extent(0);
    return place;
  }
};

// The tiles of a problem's planes.
template <typename Shape, typename Problem>
Shape tiles_of(const Problem& problem) {
  return {problem.planes(), problem.height, problem.width};
}

}  // namespace diffreg
