// For kernels that need no neighbours: a block takes a tile of a plane, a thread vectors of 16
// bytes of it. Where planes do not start at multiples of 16 bytes, a thread reads its vector voxel
// by voxel: what it works on, and so the bits of every sum, stays.
#pragma once

#include "pack.h"

namespace diffreg {

template <typename S>
constexpr int kVector = 16 / static_cast<int>(sizeof(S));

// The first `count` values of a vector, zeros behind them; all of it, in one, where it is `whole`.
template <int V, typename S>
DIFFREG_DEVICE void load_values(const S* address, int32_t count, bool whole,
                                Arithmetic<S> (&values)[V]) {
  if (whole) {
    const auto loaded = load_raw(reinterpret_cast<const Pack<S, V>*>(address));
#pragma unroll
    for (int k = 0; k < V; ++k) values[k] = static_cast<Arithmetic<S>>(loaded.of[k]);
  } else {
#pragma unroll
    for (int k = 0; k < V; ++k) values[k] = inside(k, count) ? load(address + k) : 0;
  }
}

// The same of a mask, which may be null: 1 everywhere.
template <int V, typename T>
DIFFREG_DEVICE void load_weights(const T* address, int32_t count, bool whole, T (&weights)[V]) {
  if (address) {
    load_values<V>(address, count, whole, weights);
  } else {
#pragma unroll
    for (int k = 0; k < V; ++k) weights[k] = inside(k, count);
  }
}

template <int V, typename S>
DIFFREG_DEVICE void store_values(S* address, int32_t count, bool whole,
                                 const Arithmetic<S> (&values)[V]) {
  if (whole) {
    Pack<S, V> stored;
#pragma unroll
    for (int k = 0; k < V; ++k) stored.of[k] = static_cast<S>(values[k]);
    store_raw(reinterpret_cast<Pack<S, V>*>(address), stored);
  } else {
#pragma unroll
    for (int k = 0; k < V; ++k) {
      if (inside(k, count)) store(address + k, values[k]);
    }
  }
}

// The planes of images (N, C, *S), cut into tiles. Counted by the host: it leaves registers to the
// kernels.
struct Tiles {
  int64_t channels, voxels, of_plane, of_sample, count;
  int32_t size;  // voxels of a tile

  Tiles(int64_t samples, int64_t channels_, int64_t voxels_, int32_t size_)
      : channels(channels_),
        voxels(voxels_),
        of_plane((voxels + size_ - 1) / size_),
        of_sample(channels * of_plane),
        count(samples * of_sample),
        size(size_) {}
};

// Whether every plane starts at a multiple of 16 bytes; of null, too.
template <typename S>
inline bool is_aligned(const S* planes, int64_t count, int64_t voxels) {
  const int64_t apart = count > 1 ? voxels * static_cast<int64_t>(sizeof(S)) : 0;
  return (reinterpret_cast<uintptr_t>(planes) | static_cast<uintptr_t>(apart)) % 16 == 0;
}

struct Tile {
  int64_t n, plane, within;    // within: number of the tile in its sample
  int64_t in_plane, in_image;  // the tile's first voxel, of the plane and of (N, C, *S)
  int32_t size;                // voxels

  DIFFREG_DEVICE Tile(const Tiles& tiles, int64_t index) {
    plane = index / tiles.of_plane;
    n = plane / tiles.channels;
    within = index - n * tiles.of_sample;
    in_plane = (index - plane * tiles.of_plane) * tiles.size;
    in_image = plane * tiles.voxels + in_plane;
    const int64_t remaining = tiles.voxels - in_plane;
    size = remaining < tiles.size ? static_cast<int32_t>(remaining) : tiles.size;
  }
  // The first of its voxels in a mask (N, 1, *S).
  DIFFREG_DEVICE int64_t in_mask(const Tiles& tiles) const { return n * tiles.voxels + in_plane; }
};

}  // namespace diffreg
