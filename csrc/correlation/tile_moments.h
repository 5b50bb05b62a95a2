// CUDA only: a tile of both images in the registers of a block, and its moments about its own
// means.
#pragma once

#include "../common/block_reduce.h"
#include "../common/voxel_tiles.h"
#include "correlation_cuda.h"
#include "part_moments.h"

namespace diffreg::correlation {

// Voxels of a tile that a thread works on: vectors of it, every kThreads.
template <typename S, int vectors>
struct Voxels {
  static constexpr int V = kVector<S>;
  using T = Arithmetic<S>;
  T warped[vectors][V], fixed[vectors][V];
  const T* mask;  // from the tile's first voxel on, or null
  bool masked;    // else all weights are 1
  bool aligned;
  int32_t size;

  DIFFREG_DEVICE Voxels(const Tiles& tiles, const Tile& tile, const Images<S>& images,
                        bool aligned_)
      : mask(images.mask ? images.mask + tile.in_mask(tiles) : nullptr),
        masked(mask || tile.size < tiles.size),
        aligned(aligned_),
        size(tile.size) {
    const S *w = images.warped + tile.in_image, *r = images.fixed + tile.in_image;
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      load_values<V>(w + first(v), count(v), whole(v), warped[v]);
      load_values<V>(r + first(v), count(v), whole(v), fixed[v]);
    }
  }

  // A vector's first voxel in the tile, and voxels from there to the tile's end.
  DIFFREG_DEVICE int32_t first(int v) const { return (v * kThreads + thread_index()) * V; }
  DIFFREG_DEVICE int32_t count(int v) const { return size - first(v); }
  DIFFREG_DEVICE bool whole(int v) const { return aligned && count(v) >= V; }

  // The weights of a vector, 1 unless there are `any`. For a second sum they come out of the cache:
  // in registers they would leave room for fewer blocks.
  template <bool any>
  DIFFREG_DEVICE void load_weights(int v, T (&weights)[V]) const {
    if (any) {
      diffreg::load_weights<V>(mask ? mask + first(v) : nullptr, count(v), whole(v), weights);
    } else {
#pragma unroll
      for (int k = 0; k < V; ++k) weights[k] = 1;
    }
  }

  // Adds weight, and warped and fixed image, these two times the weight.
  template <bool any>
  DIFFREG_DEVICE void add_raw(T (&sums)[3]) const {
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      T weights[V];
      load_weights<any>(v, weights);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const T m = weights[k];
        sums[0] += m;
        sums[1] += m * counted(warped[v][k], m);
        sums[2] += m * counted(fixed[v][k], m);
      }
    }
  }
  // Adds b, a, b b, a a and a b, each times the weight: the images about values close to their
  // means.
  template <bool any>
  DIFFREG_DEVICE void add_centred(T mean_warped, T mean_fixed, T (&sums)[5]) const {
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      T weights[V];
      load_weights<any>(v, weights);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const T m = weights[k];
        const T b = counted(warped[v][k] - mean_warped, m);
        const T a = counted(fixed[v][k] - mean_fixed, m);
        sums[0] += m * b;
        sums[1] += m * a;
        sums[2] += m * (b * b);
        sums[3] += m * (a * a);
        sums[4] += m * (a * b);
      }
    }
  }
};

struct Totals {
  double of[3];

  // The mean of the second or third, which are weighted by the first.
  DIFFREG_DEVICE double mean(int k) const { return of[0] == 0 ? 0 : of[k] / of[0]; }
};

// Sums three values over the block, weight, warped, fixed, and broadcasts them to every thread.
DIFFREG_DEVICE Totals broadcast_sum(double (&sums)[3]) {
  DIFFREG_SHARED(Totals, shared);
  reduce_block(sums);
  if (thread_index() == 0) shared = {{sums[0], sums[1], sums[2]}};
  __syncthreads();
  return shared;
}

// A tile's moments, in thread 0: about its means as the arithmetic rounds them, what the rounding
// leaves taken off again.
template <typename S, int vectors>
DIFFREG_DEVICE PartMoments moments_of_tile(const Voxels<S, vectors>& voxels) {
  using T = Arithmetic<S>;
  T raw[3] = {0, 0, 0}, centred[5] = {0, 0, 0, 0, 0};
  if (voxels.masked) {
    voxels.template add_raw<true>(raw);
  } else {
    voxels.template add_raw<false>(raw);
  }
  double wide[3] = {raw[0], raw[1], raw[2]};
  const Totals totals = broadcast_sum(wide);
  const T mean_warped = static_cast<T>(totals.mean(1)), mean_fixed = static_cast<T>(totals.mean(2));
  if (voxels.masked) {
    voxels.template add_centred<true>(mean_warped, mean_fixed, centred);
  } else {
    voxels.template add_centred<false>(mean_warped, mean_fixed, centred);
  }
  double sums[5] = {centred[0], centred[1], centred[2], centred[3], centred[4]};
  reduce_block(sums);
  return moments_about(mean_warped, mean_fixed, totals.of[0], sums);
}

}  // namespace diffreg::correlation
