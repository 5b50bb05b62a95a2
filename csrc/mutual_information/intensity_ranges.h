// CUDA only: the intensities that the bins of both images cover, and the largest weight: extremes
// of tiles, then of samples.
#pragma once

#include "../common/block_reduce.h"
#include "../common/voxel_tiles.h"
#include "histogram_cells.h"

namespace diffreg::mutual_information {

constexpr int kExtremes = 3;  // -low, high, largest weight: all three the larger the further
constexpr int32_t kExtremesTile = 16 * kThreads;

// An image that its range is asked of.
template <typename S>
struct Source {
  const S* values;            // (N, C, *S)
  const Arithmetic<S>* mask;  // (N, 1, *S) or null
  Tiles tiles;
  double* partials;  // (N, 3, tiles)
  bool aligned;

  Source(const S* values_, const Arithmetic<S>* mask_, const Tiles& tiles_, int64_t samples,
         double* partials_)
      : values(values_),
        mask(mask_),
        tiles(tiles_),
        partials(partials_),
        aligned(is_aligned(values_, samples * tiles_.channels, tiles_.voxels) &&
                is_aligned(mask_, samples, tiles_.voxels)) {}
};

// Smallest and largest of the finite intensities that count, and largest weight.
template <typename T>
struct Extremes {
  T low = T(INFINITY), high = -T(INFINITY);
  T weight = 0;

  DIFFREG_DEVICE void add(T value, T its_weight) {
    const bool counts = (value - value == 0) & (its_weight > 0);
    low = (counts & (value < low)) ? value : low;
    high = (counts & (value > high)) ? value : high;
    weight = its_weight > weight ? its_weight : weight;
  }
};

template <typename S>
DIFFREG_DEVICE void reduce_extremes(const Source<S>& source, int64_t index) {
  using T = Arithmetic<S>;
  constexpr int V = kVector<S>;
  const Tile tile(source.tiles, index);
  const S* values = source.values + tile.in_image;
  const T* mask = source.mask ? source.mask + tile.in_mask(source.tiles) : nullptr;
  constexpr int vectors = kExtremesTile / (kThreads * V);
  T value[vectors][V];
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const int32_t first = (v * kThreads + thread_index()) * V, count = tile.size - first;
    load_values<V>(values + first, count, source.aligned && count >= V, value[v]);
  }
  Extremes<T> found;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const int32_t first = (v * kThreads + thread_index()) * V, count = tile.size - first;
    T weight[V];
    load_weights<V>(mask ? mask + first : nullptr, count, source.aligned && count >= V, weight);
#pragma unroll
    for (int k = 0; k < V; ++k) found.add(value[v][k], weight[k]);
  }
  double extremes[kExtremes] = {-double(found.low), double(found.high), double(found.weight)};
  reduce_block<kExtremes, Max>(extremes);
  if (thread_index() != 0) return;
  for (int k = 0; k < kExtremes; ++k) {
    const int64_t tiles = source.tiles.of_sample;
    store(source.partials + (tile.n * kExtremes + k) * tiles + tile.within, extremes[k]);
  }
}

// Extremes of the tiles of both images; and zeros to count from.
template <typename S>
__global__ void __launch_bounds__(kThreads, kResident)
    extremes_kernel(Source<S> of_warped, Source<S> of_fixed, int64_t samples, int64_t cells,
                    Counts counts) {
  const int64_t all = int64_t(gridDim.x) * kThreads;
  for (int64_t k = int64_t(blockIdx.x) * kThreads + thread_index(); k < cells; k += all) {
    store_raw(counts.low + k, Word{0});
    store_raw(counts.high + k, Word{0});
    if (inside(k, samples)) store_raw(counts.unknown + k, 0u);
  }
  const int64_t first = of_warped.tiles.count, count = first + of_fixed.tiles.count;
  for (int64_t index = blockIdx.x; index < count; index += gridDim.x) {
    if (index < first) {
      reduce_extremes(of_warped, index);
    } else {
      reduce_extremes(of_fixed, index - first);
    }
  }
}

// The extremes of a sample, in thread 0.
DIFFREG_DEVICE void merge_extremes(const double* partials, int64_t n, int64_t tiles,
                                   double (&extremes)[kExtremes]) {
  for (int k = 0; k < kExtremes; ++k) {
    extremes[k] = k < 2 ? -double(INFINITY) : 0;
    for (int64_t tile = thread_index(); tile < tiles; tile += kThreads) {
      const double value = load(partials + (n * kExtremes + k) * tiles + tile);
      extremes[k] = Max::combine(extremes[k], value);
    }
  }
  reduce_block<kExtremes, Max>(extremes);
}

template <typename T>
DIFFREG_DEVICE void store_range(double* to, const double (&extremes)[kExtremes]) {
  const auto range = Range<T>::between(static_cast<T>(-extremes[0]), static_cast<T>(extremes[1]));
  store(to, double(range.low));
  store(to + 1, double(range.extent));
}

// A power of two that no weight is above: what weights are measured by.
DIFFREG_DEVICE double unit_of(double largest) {
  if (!(largest > 0)) return 1;
  if (largest - largest != 0) return largest;
  int exponent;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0, exponent > -100 ? exponent : -100);
}

// Ranges and units of the samples, a block each.
template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    ranges_kernel(int64_t samples,
                  const double* of_warped,  // (N, 3, tiles of the warped image)
                  const double* of_fixed,   // (N, 3, tiles of the fixed image)
                  int64_t warped_tiles, int64_t fixed_tiles,
                  double* ranges,   // (N, 4)
                  double* units) {  // (N)
  for (int64_t n = blockIdx.x; n < samples; n += gridDim.x) {
    double extremes[kExtremes];
    merge_extremes(of_warped, n, warped_tiles, extremes);
    if (thread_index() == 0) store_range<T>(ranges + n * kRanges, extremes);
    merge_extremes(of_fixed, n, fixed_tiles, extremes);
    if (thread_index() != 0) continue;
    store_range<T>(ranges + n * kRanges + 2, extremes);
    store(units + n, unit_of(extremes[2]));
  }
}

}  // namespace diffreg::mutual_information
