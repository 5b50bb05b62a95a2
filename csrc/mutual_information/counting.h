// CUDA only: where the voxels of a tile lie among the bins, and their windows, counted.
#pragma once

#include "../common/voxel_tiles.h"
#include "histogram_cells.h"
#include "mutual_information_cuda.h"

namespace diffreg::mutual_information {

template <typename T>
DIFFREG_DEVICE Range<T> load_range(const double* ranges, int64_t n, int image) {
  const double* range = ranges + n * kRanges + 2 * image;
  return {static_cast<T>(load(range)), static_cast<T>(load(range + 1))};
}

// Where the voxels of a tile lie among the bins, one by one.
template <typename S>
struct Binning {
  using T = Arithmetic<S>;
  Range<T> of_warped, of_fixed;
  int32_t rows, columns;

  DIFFREG_DEVICE Binning(const Shape& shape, const double* ranges, int64_t n)
      : of_warped(load_range<T>(ranges, n, 0)),
        of_fixed(load_range<T>(ranges, n, 1)),
        rows(static_cast<int32_t>(shape.rows)),
        columns(static_cast<int32_t>(shape.columns)) {}

  DIFFREG_DEVICE Place<T> place(T warped) const { return place_of(warped, of_warped, rows); }
  // The cell of the first tap.
  DIFFREG_DEVICE int32_t cell(const Place<T>& place, T fixed) const {
    return place_of(fixed, of_fixed, rows).cell * columns + place.cell + kPadding - 1;
  }
};

// Calls run(first, count, whole, warped, fixed, weights) for the vectors of a tile that this thread
// works on; a weight beyond the tile is 0.
template <typename S, typename Run>
DIFFREG_DEVICE void for_vectors(const Tiles& tiles, const Tile& tile, const Images<S>& images,
                                bool aligned, const Run& run) {
  using T = Arithmetic<S>;
  constexpr int V = kVector<S>;
  const S *warped = images.warped + tile.in_image, *fixed = images.fixed + tile.in_image;
  const T* mask = images.mask ? images.mask + tile.in_mask(tiles) : nullptr;
  for (int32_t first = thread_index() * V; first < tile.size; first += kThreads * V) {
    const int32_t count = tile.size - first;
    const bool whole = aligned && count >= V;
    T w[V], r[V], weight[V];
    load_values<V>(warped + first, count, whole, w);
    load_values<V>(fixed + first, count, whole, r);
    load_weights<V>(mask ? mask + first : nullptr, count, whole, weight);
    run(first, count, whole, w, r, weight);
  }
}

// Adds the windows of a tile's voxels; true where a value that counts is not finite.
template <typename S, typename Cells>
DIFFREG_DEVICE bool count_tile(const Tiles& tiles, const Tile& tile, const Images<S>& images,
                               bool aligned, const Binning<S>& binning, double unit, Cells& cells) {
  using T = Arithmetic<S>;
  constexpr int V = kVector<S>;
  const T per_unit = static_cast<T>(1 / unit);
  bool unknown = false;
  for_vectors(tiles, tile, images, aligned,
              [&](int32_t, int32_t, bool, const T(&w)[V], const T(&r)[V], const T(&weight)[V]) {
#pragma unroll
                for (int k = 0; k < V; ++k) {
                  if (!(weight[k] > 0)) continue;
                  const auto place = binning.place(w[k]);
                  const int32_t cell = binning.cell(place, r[k]);
                  T taps[kTaps];
                  cubic_window(place.fraction, weight[k] * per_unit, taps);
                  cells.add(cell, taps);
                  unknown |= (w[k] - w[k] != 0) | (r[k] - r[k] != 0);
                }
              });
  return unknown;
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    count_shared_kernel(Shape shape, Tiles tiles, Images<S> images, bool aligned,
                        const double* ranges,  // (N, 4)
                        const double* units,   // (N)
                        Counts counts) {
  DIFFREG_SHARED(SharedCells::Words, words);
  SharedCells cells(words, static_cast<int32_t>(shape.size()));
  for (int64_t index = blockIdx.x; index < tiles.count; index += gridDim.x) {
    const Tile tile(tiles, index);
    const Binning<S> binning(shape, ranges, tile.n);
    const double unit = load(units + tile.n);
    if (count_tile(tiles, tile, images, aligned, binning, unit, cells)) {
      atomicAdd(counts.unknown + tile.n, 1u);
    }
    cells.flush(counts.low + tile.n * shape.size(), counts.high + tile.n * shape.size());
  }
}

// Of doubles, and of more bins than shared memory holds.
template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    count_global_kernel(Shape shape, Tiles tiles, Images<S> images, bool aligned,
                        const double* ranges,  // (N, 4)
                        const double* units,   // (N)
                        Counts counts) {
  for (int64_t index = blockIdx.x; index < tiles.count; index += gridDim.x) {
    const Tile tile(tiles, index);
    const Binning<S> binning(shape, ranges, tile.n);
    const double unit = load(units + tile.n);
    GlobalCells cells{counts.low + tile.n * shape.size(), counts.high + tile.n * shape.size()};
    if (count_tile(tiles, tile, images, aligned, binning, unit, cells)) {
      atomicAdd(counts.unknown + tile.n, 1u);
    }
  }
}

}  // namespace diffreg::mutual_information
