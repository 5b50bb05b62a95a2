// Minus the mutual information from a joint histogram. Four kernels forward, two backward.
#include <cmath>

#include "../common/block_reduce.h"
#include "counting.h"
#include "intensity_ranges.h"
#include "mutual_information_cuda.h"

namespace diffreg::mutual_information {
namespace {

constexpr int32_t kTile = 32 * kThreads;  // a flush of the histogram should cost little beside it

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

// Histograms and values of the samples, a block each; a warp takes a row of cells.
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
    for (int64_t row = threadIdx.y; row < shape.rows; row += kWarps) {
      const double share = marginals.of_rows[row] / marginals.total;
      for (int64_t column = threadIdx.x; column < shape.columns; column += kColumns) {
        const double count = load(histogram + row * shape.columns + column);
        sum[0] += value_term(count, marginals.of_columns[column], share);
      }
    }
    reduce_block(sum);  // whose barriers come before the next sample's marginals
    if (thread_index() == 0) store(value + n, static_cast<T>(sum[0] == 0 ? 0 : sum[0] / total[0]));
  }
}

// What the gradient reads, a block a sample, a warp a row of cells.
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
    for (int64_t row = threadIdx.y; row < shape.rows; row += kWarps) {
      const int64_t first = row * shape.columns;
      const auto slope = [&](int64_t column) {
        return slope_to(load(histogram + first + column), of_columns.of[column]);
      };
      for (int64_t at = threadIdx.x; at < shape.columns; at += kColumns) {
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

Tiles tiles_of_moving(const Problem& problem, bool has_moving) {
  if (!has_moving) return Tiles(problem.samples, problem.channels, problem.voxels, kExtremesTile);
  return Tiles(problem.samples, problem.moving_channels, problem.moving_voxels, kExtremesTile);
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
