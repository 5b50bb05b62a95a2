// Rectangular tiles of a grid, numbered, for the kernels that do not march along columns
// (columns.h); their blocks go over them in a grid-stride loop.
#pragma once

#include "kernel.h"

namespace diffreg {

// The tiles of all samples' grids, of any number of axes: a tile has `extents` voxels along them,
// and tiles are numbered along the last axis first. Those of a sample are fewer than 2^32.
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

}  // namespace diffreg
