// Minus the mutual information from a joint histogram that is counted in integers: their sums do
// not depend on the order of the atomics. Four kernels forward, two backward.
//
// A tap of a window is rounded to a fixed point: to 2^-30 of the sample's largest weight where a
// block counts in shared memory, which float alone does, to 2^-60 in global memory. The word that
// it is added to overflows, and then the atomic's return says so, and the carry goes to another
// word: nothing is lost, however many voxels a bin has. 30 bits are as exact as a float's window
// where it matters, in bins that hold one small tap alone: there the gradient reads the logarithm
// of the tap, f^3 / 6, times f^2 / 2, and is 2e-5 off at the worst (1e-3 with the 17 bits for which
// a word would hold 2^15 voxels without a carry).
#include <cmath>

#include "../common/block_reduce.h"
#include "../common/voxel_tiles.h"
#include "mutual_information_cuda.h"

namespace diffreg::mutual_information {
namespace {

constexpr int kExtremes = 3;  // -low, high, largest weight: all three the larger the further
constexpr int32_t kExtremesTile = 16 * kThreads;
constexpr int32_t kTile = 32 * kThreads;  // a flush of the histogram should cost little beside it
constexpr int kSharedCells = 4096;        // two words each: 32 KiB

using Word = unsigned long long;

// Two words a cell, the second what has overflown the first; a sample's cells side by side.
struct Counts {
  Word* low;          // (N, rows, columns)
  Word* high;         // (N, rows, columns)
  unsigned* unknown;  // (N): not 0 where a value that counts is not finite
};

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

Tiles tiles_of_moving(const Problem& problem, bool has_moving) {
  if (!has_moving) return Tiles(problem.samples, problem.channels, problem.voxels, kExtremesTile);
  return Tiles(problem.samples, problem.moving_channels, problem.moving_voxels, kExtremesTile);
}

// Smallest and largest of the finite intensities that count, and largest weight.
template <typename T>
struct Extremes {
  T low = T(INFINITY), high = -T(INFINITY);
  T weight = 0;

  DIFFREG_DEVICE void add(T value, T its_weight) {
    const bool counts = (value - value == 0) & (its_weight > 0);
    low = counts & (value < low) ? value : low;
    high = counts & (value > high) ? value : high;
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

// Adds to numbers of two words, `apart` from each other. What a word overflows by depends on the
// order, how often does not. All are asked for before the first is looked at.
template <int count, typename Low, typename High>
DIFFREG_DEVICE void add_with_carries(Low* low, High* high, int32_t apart,
                                     const Low (&values)[count]) {
  Low before[count];
#pragma unroll
  for (int k = 0; k < count; ++k) before[k] = atomicAdd(low + k * apart, values[k]);
#pragma unroll
  for (int k = 0; k < count; ++k) {
    if (before[k] > static_cast<Low>(~values[k])) atomicAdd(high + k * apart, High{1});
  }
}

// A histogram in shared memory, as often as there is room: lanes that have the same intensities
// would wait for each other.
struct SharedCells {
  static constexpr int kBits = 30;
  struct Words {
    unsigned low[kSharedCells], high[kSharedCells];
  };
  Words& words;
  int32_t size, copies, copy;  // copy: this lane's

  DIFFREG_DEVICE SharedCells(Words& shared, int32_t cells)
      : words(shared), size(cells), copies(kSharedCells / cells) {
    copy = static_cast<int32_t>(threadIdx.x) % copies;
    for (int k = thread_index(); k < kSharedCells; k += kThreads) words.low[k] = words.high[k] = 0;
    __syncthreads();
  }
  DIFFREG_DEVICE void add(int32_t cell, const float (&taps)[kTaps]) {
    const int32_t at = cell * copies + copy;
    unsigned values[kTaps];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      values[k] = static_cast<unsigned>(__float2int_rn(taps[k] * float(1 << kBits)));
    }
    add_with_carries(words.low + at, words.high + at, copies, values);
  }
  // Moves what was counted to a sample's cells.
  DIFFREG_DEVICE void flush(Word* low, Word* high) {
    __syncthreads();
    for (int32_t cell = thread_index(); cell < size; cell += kThreads) {
      Word count = 0;
      for (int32_t at = cell * copies; at < (cell + 1) * copies; ++at) {
        count += (Word{words.high[at]} << 32) + words.low[at];
        words.low[at] = words.high[at] = 0;
      }
      const Word values[] = {count};
      if (count != 0) add_with_carries(low + cell, high + cell, 0, values);
    }
    __syncthreads();
  }
};

DIFFREG_DEVICE long long rounded(float value) { return __float2ll_rn(value); }
DIFFREG_DEVICE long long rounded(double value) { return __double2ll_rn(value); }

// A sample's cells in global memory.
struct GlobalCells {
  static constexpr int kBits = 60;
  Word *low, *high;

  template <typename T>
  DIFFREG_DEVICE void add(int32_t cell, const T (&taps)[kTaps]) {
    Word values[kTaps];
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      values[k] = static_cast<Word>(rounded(taps[k] * T(int64_t{1} << kBits)));
    }
    add_with_carries(low + cell, high + cell, 1, values);
  }
};

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

// Sums of a sample's joint histogram.
struct Marginals {
  double of_rows[kMostBins], of_columns[kMostBins], total;
};

// The sums of the columns, and this thread's part of their sum. The block sees them after a
// barrier.
DIFFREG_DEVICE double sum_columns(const Shape& shape, const double* histogram, double* of_columns) {
  double total = 0;
  for (int64_t column = thread_index(); column < shape.columns; column += kThreads) {
    double sum = 0;
    for (int64_t row = 0; row < shape.rows; ++row) {
      sum += load(histogram + row * shape.columns + column);
    }
    of_columns[column] = sum;
    total += sum;
  }
  return total;
}

DIFFREG_DEVICE void sum_rows(const Shape& shape, const double* histogram, double* of_rows) {
  for (int64_t row = thread_index(); row < shape.rows; row += kThreads) {
    double sum = 0;
    for (int64_t column = 0; column < shape.columns; ++column) {
      sum += load(histogram + row * shape.columns + column);
    }
    of_rows[row] = sum;
  }
}

struct Columns {
  double of[kMostBins];
};

// Turns the integers of a sample into its histogram.
DIFFREG_DEVICE void convert(const Shape& shape, const Counts& counts, int64_t n, double per_count,
                            double* histogram) {
  const Word *low = counts.low + n * shape.size(), *high = counts.high + n * shape.size();
  const bool unknown = load_raw(counts.unknown + n) != 0;
  for (int64_t cell = thread_index(); cell < shape.size(); cell += kThreads) {
    const double words[2] = {double(load_raw(low + cell)), double(load_raw(high + cell))};
    const double count = (words[1] * 0x1p64 + words[0]) * per_count;
    const bool lost = unknown && cell == kUnknownCell;
    store(histogram + cell, lost ? double(NAN) : count);
  }
  __syncthreads();
}

// Histograms and values of the samples, a block each.
template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    value_kernel(int64_t samples, Shape shape, Counts counts, double step,
                 const double* units,  // (N)
                 double* histograms,   // (N, rows, columns)
                 T* value) {           // (N)
  DIFFREG_SHARED(Marginals, marginals);
  for (int64_t n = blockIdx.x; n < samples; n += gridDim.x) {
    double* histogram = histograms + n * shape.size();
    convert(shape, counts, n, step * load(units + n), histogram);
    double total[1] = {sum_columns(shape, histogram, marginals.of_columns)};
    sum_rows(shape, histogram, marginals.of_rows);
    reduce_block(total);
    if (thread_index() == 0) marginals.total = total[0];
    __syncthreads();
    double sum[1] = {0};
    for (int64_t row = 0; row < shape.rows; ++row) {
      const double share = marginals.of_rows[row] / marginals.total;
      for (int64_t column = thread_index(); column < shape.columns; column += kThreads) {
        const double count = load(histogram + row * shape.columns + column);
        sum[0] += value_term(count, marginals.of_columns[column], share);
      }
    }
    reduce_block(sum);  // whose barriers come before the next sample's marginals
    if (thread_index() == 0) store(value + n, static_cast<T>(sum[0] == 0 ? 0 : sum[0] / total[0]));
  }
}

// What the gradient reads, a block a sample.
template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    steps_kernel(int64_t samples, Shape shape,
                 const T* gradient,         // (N)
                 const double* histograms,  // (N, rows, columns)
                 const double* ranges,      // (N, 4)
                 T* steps,                  // (N, rows, columns), the last column 0
                 T* factors) {              // (N)
  DIFFREG_SHARED(Columns, of_columns);
  for (int64_t n = blockIdx.x; n < samples; n += gridDim.x) {
    const double* histogram = histograms + n * shape.size();
    double total[1] = {sum_columns(shape, histogram, of_columns.of)};
    __syncthreads();
    for (int64_t row = 0; row < shape.rows; ++row) {
      const int64_t first = row * shape.columns;
      const auto slope = [&](int64_t column) {
        return slope_to(load(histogram + first + column), of_columns.of[column]);
      };
      for (int64_t at = thread_index(); at < shape.columns; at += kThreads) {
        const bool has_next = at + 1 < shape.columns;
        store(steps + n * shape.size() + first + at,
              has_next ? static_cast<T>(slope(at + 1) - slope(at)) : T(0));
      }
    }
    reduce_block(total);  // whose barriers come before the next sample's columns
    if (thread_index() != 0) continue;
    const double upstream = load(gradient + n), extent = load(ranges + n * kRanges + 1);
    store(factors + n, static_cast<T>(slope_factor(upstream, total[0], shape.rows, extent)));
  }
}

// The gradient of a tile's voxels; steps(k) is that of a cell.
template <typename S, typename Steps>
DIFFREG_DEVICE void fill_tile(const Tiles& tiles, const Tile& tile, const Images<S>& images,
                              bool aligned, const Binning<S>& binning, Arithmetic<S> factor,
                              const Steps& steps, S* out) {
  using T = Arithmetic<S>;
  constexpr int V = kVector<S>;
  for_vectors(tiles, tile, images, aligned,
              [&](int32_t first, int32_t count, bool whole, const T(&w)[V], const T(&r)[V],
                  const T(&weight)[V]) {
                T gradient[V];
#pragma unroll
                for (int k = 0; k < V; ++k) {
                  const auto place = binning.place(counted(w[k], weight[k]));
                  const int32_t cell = binning.cell(place, counted(r[k], weight[k]));
                  const T around[] = {steps(cell), steps(cell + 1), steps(cell + 2)};
                  const T moves = weight[k] * static_cast<T>(place.inside);
                  const T slope = factor * cubic_slope(place.fraction, around);
                  gradient[k] = moves * counted(slope, moves);
                }
                store_values<V>(out + tile.in_image + first, count, whole, gradient);
              });
}

template <typename T>
struct SharedSteps {
  static constexpr int kCells = 16384 / sizeof(T);
  T of[kCells];
};

template <typename S, bool in_shared>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    backward_kernel(Shape shape, Tiles tiles, Images<S> images, bool aligned,
                    const double* ranges,          // (N, 4)
                    const Arithmetic<S>* steps,    // (N, rows, columns)
                    const Arithmetic<S>* factors,  // (N)
                    S* grad_warped) {              // (N, C, *S)
  using T = Arithmetic<S>;
  for (int64_t index = blockIdx.x; index < tiles.count; index += gridDim.x) {
    const Tile tile(tiles, index);
    const Binning<S> binning(shape, ranges, tile.n);
    const T factor = load(factors + tile.n);
    const T* of_sample = steps + tile.n * shape.size();
    if constexpr (in_shared) {
      DIFFREG_SHARED(SharedSteps<T>, shared);
      __syncthreads();  // the last tile's have been read
      for (int k = thread_index(); k < shape.size() - 1; k += kThreads) {
        shared.of[k] = load(of_sample + k);
      }
      __syncthreads();
      fill_tile(
          tiles, tile, images, aligned, binning, factor,
          [&](int32_t cell) { return shared.of[cell]; }, grad_warped);
    } else {
      fill_tile(
          tiles, tile, images, aligned, binning, factor,
          [&](int32_t cell) { return load(of_sample + cell); }, grad_warped);
    }
  }
}

template <typename S>
bool is_aligned(const Problem& problem, const Images<S>& images, const S* output) {
  const int64_t planes = problem.samples * problem.channels, voxels = problem.voxels;
  return diffreg::is_aligned(images.warped, planes, voxels) &&
         diffreg::is_aligned(images.fixed, planes, voxels) &&
         diffreg::is_aligned(output, planes, voxels) &&
         diffreg::is_aligned(images.mask, problem.samples, voxels);
}

// What lies in the workspace of the forward pass.
struct Workspace {
  Tiles of_warped, of_fixed;  // for the extremes
  double *warped_partials, *fixed_partials, *units;
  Counts counts;
  int64_t cells, doubles;

  Workspace(const Problem& problem, bool has_moving, double* memory)
      : of_warped(tiles_of_moving(problem, has_moving)),
        of_fixed(tiles_of_moving(problem, false)),
        cells(problem.samples * problem.shape.size()),
        doubles(0) {
    const auto take = [&](int64_t count) {
      doubles += count;
      return memory ? memory + doubles - count : nullptr;
    };
    warped_partials = take(problem.samples * kExtremes * of_warped.of_sample);
    fixed_partials = take(problem.samples * kExtremes * of_fixed.of_sample);
    units = take(problem.samples);
    counts.low = reinterpret_cast<Word*>(take(cells));
    counts.high = reinterpret_cast<Word*>(take(cells));
    counts.unknown = reinterpret_cast<unsigned*>(take(problem.samples));
  }
};

}  // namespace

int64_t forward_doubles(const Problem& problem) {
  const auto doubles = [&](bool has_moving) {
    return Workspace(problem, has_moving, nullptr).doubles;
  };
  const int64_t without = doubles(false), with = doubles(true);
  return without > with ? without : with;
}

int64_t backward_doubles(const Problem& problem) {
  return problem.samples * (problem.shape.size() + 1);
}

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images, double* workspace,
                    Arithmetic<S>* value, double* histograms, double* ranges, void* stream) {
  using T = Arithmetic<S>;
  const Workspace work(problem, images.moving != nullptr, workspace);
  const int64_t N = problem.samples;
  const S* source = images.moving ? images.moving : images.warped;
  const T* mask = images.moving ? nullptr : images.mask;
  const Source<S> of_warped(source, mask, work.of_warped, N, work.warped_partials);
  const Source<S> of_fixed(images.fixed, images.mask, work.of_fixed, N, work.fixed_partials);
  DIFFREG_LAUNCH(extremes_kernel<S>, work.of_warped.count + work.of_fixed.count, block_shape(),
                 stream, of_warped, of_fixed, N, work.cells, work.counts);
  DIFFREG_LAUNCH(ranges_kernel<T>, N, block_shape(), stream, N, work.warped_partials,
                 work.fixed_partials, work.of_warped.of_sample, work.of_fixed.of_sample, ranges,
                 work.units);
  const Tiles tiles(N, problem.channels, problem.voxels, kTile);
  const bool aligned = is_aligned<S>(problem, images, nullptr);
  int bits = GlobalCells::kBits;
  if (sizeof(T) == 4 && problem.shape.size() <= kSharedCells) {
    bits = SharedCells::kBits;
    if constexpr (sizeof(T) == 4) {
      DIFFREG_LAUNCH(count_shared_kernel<S>, tiles.count, block_shape(), stream, problem.shape,
                     tiles, images, aligned, ranges, work.units, work.counts);
    }
  } else {
    DIFFREG_LAUNCH(count_global_kernel<S>, tiles.count, block_shape(), stream, problem.shape, tiles,
                   images, aligned, ranges, work.units, work.counts);
  }
  DIFFREG_LAUNCH(value_kernel<T>, N, block_shape(), stream, N, problem.shape, work.counts,
                 std::ldexp(1.0, -bits), work.units, histograms, value);
}

template <typename S>
void launch_backward(const Problem& problem, const Images<S>& images, const Arithmetic<S>* gradient,
                     const double* histograms, const double* ranges, double* workspace,
                     S* grad_warped, void* stream) {
  using T = Arithmetic<S>;
  const int64_t N = problem.samples;
  T* factors = reinterpret_cast<T*>(workspace);
  T* steps = factors + N;
  DIFFREG_LAUNCH(steps_kernel<T>, N, block_shape(), stream, N, problem.shape, gradient, histograms,
                 ranges, steps, factors);
  const Tiles tiles(N, problem.channels, problem.voxels, kTile);
  const bool aligned = is_aligned(problem, images, grad_warped);
  if (problem.shape.size() <= SharedSteps<T>::kCells) {
    DIFFREG_LAUNCH((backward_kernel<S, true>), tiles.count, block_shape(), stream, problem.shape,
                   tiles, images, aligned, ranges, steps, factors, grad_warped);
  } else {
    DIFFREG_LAUNCH((backward_kernel<S, false>), tiles.count, block_shape(), stream, problem.shape,
                   tiles, images, aligned, ranges, steps, factors, grad_warped);
  }
}

#define DIFFREG_INSTANCES(S)                                                                       \
  template void launch_forward(const Problem&, const Images<S>&, double*, Arithmetic<S>*, double*, \
                               double*, void*);                                                    \
  template void launch_backward(const Problem&, const Images<S>&, const Arithmetic<S>*,            \
                                const double*, const double*, double*, S*, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::mutual_information
