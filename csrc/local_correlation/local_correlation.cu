// Windowed correlation. One kernel sums five products over each window, in double, for the measure
// and, where a gradient is asked for, three terms a window, which it stores; another one sums these
// over the windows that a voxel is in.
#include "../common/block_reduce.h"
#include "../common/mask_total.h"
#include "local_correlation_cuda.h"
#include "march_sources.h"

namespace diffreg::local_correlation {
namespace {

// 1 / voxels of the window, of the axes before the last and of the last; that of a thread's columns
// is kept in shared memory, for want of registers.
struct ColumnShares {
  double of[kQuad][kThreads];

  DIFFREG_DEVICE void set(const Problem& problem, int32_t x) {
    for (int j = 0; j < kQuad; ++j) {
      of[j][thread_index()] =
          plain_quotient(1.0, double(window_count(x + j, problem.radius, problem.width)));
    }
  }
  DIFFREG_DEVICE double get(int j) const {
    return *const_cast<const volatile double*>(&of[j][thread_index()]);
  }
};
template <int D>
DIFFREG_DEVICE double row_share(const Problem& problem, int32_t z, int32_t y) {
  const double rows = window_count(y, problem.radius, problem.height);
  return plain_quotient(1.0, D == 2 ? rows : rows * window_count(z, problem.radius, problem.depth));
}

// Of the sum over windows in their mean over voxels and channels.
DIFFREG_DEVICE double factor(const Problem& problem, const double* total, int64_t n) {
  return per_voxel(total, n, problem.voxels()) / problem.channels;
}

// Blocks of a multiprocessor for which registers must do: what fits without spilling.
template <typename Box, typename S>
constexpr int kBlocks = Box::kHalo > 0 && sizeof(Arithmetic<S>) == 4 ? 2 : 1;

template <int D, typename Box, typename S>
__global__ void __launch_bounds__(kThreads, (kBlocks<Box, S>))
    windows_kernel(Problem problem, Strips<Box::kHalo> strips, Images<S> images, bool whole,
                   Arithmetic<S>* terms,  // (N * C, kParts, *S) or null
                   Reduction reduction,
                   const double* total,     // (N), of the mask's weights, or null
                   Arithmetic<S>* value) {  // (N) or null
  using T = Arithmetic<S>;
  DIFFREG_SHARED(ColumnShares, shares);
  const int64_t sample_tiles = problem.channels * strips.per_plane, voxels = problem.voxels();
  for (int64_t tile = blockIdx.x; tile < strips.count(); tile += gridDim.x) {
    const Place place = strips.place(tile);
    const PairPlane<S> plane(problem, images, place.plane, whole);
    const int32_t end = place.owns ? problem.width : 0;  // of the columns that are the lane's
    shares.set(problem, place.x);
    double sum[1] = {0};
    march<D, Box>(problem, place, plane, [&](int32_t y, auto sums) {
      const int64_t row = (int64_t{place.z} * problem.height + y) * problem.width;
      const double share = row_share<D>(problem, place.z, y);
      const Quad<T> weights = plane.weights(row, place.x, end, whole);
      Quad<T> parts[kParts];
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        double of[kTerms];
        sums.take(j, of);
        const Window window(of, share * shares.get(j));
        const double weight = weights.of[j];
        if (inside(place.x + j, end)) sum[0] += weight * counted(window.value(), weight);
        if (!terms) continue;
        window.gradient_terms(weight, of[0], of[1], of[2]);
        for (int k = 0; k < kParts; ++k) parts[k].of[j] = static_cast<T>(counted(of[k], weight));
      }
      if (!terms) return;
      for (int k = 0; k < kParts; ++k) {
        store_quad(terms + (place.plane * kParts + k) * voxels + row, place.x, end, whole,
                   parts[k]);
      }
    });
    if (!value) continue;
    const int64_t n = place.plane / problem.channels, within = tile - n * sample_tiles;
    reduce_tiles(reduction, sum, n, within, sample_tiles, [&](const double* all) {
      store(value + n, static_cast<T>(all[0] * factor(problem, total, n)));
    });
  }
}

// The gradient to the own image, from the terms of the windows.
template <int D, typename Box, typename S>
__global__ void __launch_bounds__(kThreads, (kBlocks<Box, S>))
    gradient_kernel(Problem problem, Strips<Box::kHalo> strips, Images<S> images, bool whole,
                    const Arithmetic<S>* terms,     // (N * C, kParts, *S)
                    const double* total,            // (N), of the mask's weights, or null
                    const Arithmetic<S>* upstream,  // (N) or null, for 1
                    S* gradient,                    // (N, C, *S)
                    bool accumulate) {
  using T = Arithmetic<S>;
  const int64_t voxels = problem.voxels();
  for (int64_t tile = blockIdx.x; tile < strips.count(); tile += gridDim.x) {
    const Place place = strips.place(tile);
    const PairPlane<S> plane(problem, images, place.plane, whole);
    const WindowTerms<T> source(terms + place.plane * kParts * voxels, problem, whole);
    const int64_t n = place.plane / problem.channels;
    const double scale = factor(problem, total, n) * (upstream ? load(upstream + n) : T(1));
    const int32_t end = place.owns ? problem.width : 0;
    march<D, Box>(problem, place, source, [&](int32_t y, auto sums) {
      const int64_t row = (int64_t{place.z} * problem.height + y) * problem.width;
      const auto pair = plane.read(row, place.x, end, whole);
      Quad<T> slope;
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        double of[kParts];
        sums.take(j, of);
        const double found =
            scale * gradient_at(of[0], of[1], of[2], pair.of[0].of[j], pair.of[1].of[j]);
        slope.of[j] = pair.hides[j] ? T(0) : static_cast<T>(found);
      }
      S* to = gradient + place.plane * voxels + row;
      if (accumulate) {
        const Quad<T> there = load_quad(to, place.x, end, whole);
        for (int j = 0; j < kQuad; ++j) slope.of[j] += there.of[j];
      }
      store_quad(to, place.x, end, whole, slope);
    });
  }
}

// Workspace, in doubles: the terms of the windows, the mask's totals and the value's sums, of which
// each may be missing.
template <int halo, typename S>
struct Layout {
  int64_t terms = 0, totals = 0, sums = 0;

  Layout(const Problem& problem, const Strips<halo>& strips, const Images<S>& images,
         const Results<S>& results) {
    if (results.grad_warped || results.grad_fixed) {
      const int64_t count = kParts * problem.planes() * problem.voxels();
      terms = (count * int64_t{sizeof(Arithmetic<S>)} + 7) / 8;
    }
    if (images.mask) totals = mask_total_doubles(problem.samples, problem.voxels());
    if (results.value) {
      sums = reduction_doubles(problem.samples, 1, problem.channels * strips.per_plane);
    }
  }
};

template <template <int> class Box, typename S>
int64_t doubles_of(const Problem& problem, const Images<S>& images, const Results<S>& results) {
  const Layout layout(problem, Strips<Box<kTerms>::kHalo>(problem), images, results);
  return layout.terms + layout.totals + layout.sums;
}

template <int D, template <int> class Box, typename S>
void launch_kernels(const Problem& problem, const Images<S>& images, const Arithmetic<S>* gradient,
                    double* workspace, const Results<S>& results, void* stream) {
  using T = Arithmetic<S>;
  const Strips<Box<kTerms>::kHalo> strips(problem);
  const Layout layout(problem, strips, images, results);
  T* terms = layout.terms > 0 ? reinterpret_cast<T*>(workspace) : nullptr;
  double *totals = workspace + layout.terms, *sums = totals + layout.totals;
  const double* total =
      launch_mask_total(problem.samples, problem.voxels(), images.mask, totals, stream);
  const auto run = [&](const Images<S>& pair, T* value, S* slope) {
    const int64_t W = problem.width, sample_tiles = problem.channels * strips.per_plane;
    const bool whole = rows_are_packed<kQuad>(pair.own, W) &&
                       rows_are_packed<kQuad>(pair.other, W) &&
                       rows_are_packed<kQuad>(pair.mask, W) && rows_are_packed<kQuad>(terms, W) &&
                       rows_are_packed<kQuad>(slope, W);
    Reduction reduction{};
    if (value) reduction = make_reduction(sums, problem.samples, 1, sample_tiles, stream);
    DIFFREG_LAUNCH((windows_kernel<D, Box<kTerms>, S>), strips.count(), block_shape(), stream,
                   problem, strips, pair, whole, terms, reduction, total, value);
    if (!slope) return;
    DIFFREG_LAUNCH((gradient_kernel<D, Box<kParts>, S>), strips.count(), block_shape(), stream,
                   problem, strips, pair, whole, terms, total, gradient, slope, results.accumulate);
  };
  const bool to_own = results.grad_warped || !results.grad_fixed;
  if (to_own) run(images, results.value, results.grad_warped);
  if (results.grad_fixed) {
    run({images.other, images.own, images.mask}, to_own ? nullptr : results.value,
        results.grad_fixed);
  }
}

}  // namespace

template <typename S>
int64_t workspace_doubles(const Problem& problem, const Images<S>& images,
                          const Results<S>& results) {
  return problem.radius <= kNearest ? doubles_of<NearBox>(problem, images, results)
                                    : doubles_of<AnyBox>(problem, images, results);
}

template <int D, typename S>
void launch(const Problem& problem, const Images<S>& images, const Arithmetic<S>* gradient,
            double* workspace, const Results<S>& results, void* stream) {
  if (problem.radius <= kNearest) {
    launch_kernels<D, NearBox>(problem, images, gradient, workspace, results, stream);
  } else {
    launch_kernels<D, AnyBox>(problem, images, gradient, workspace, results, stream);
  }
}

#define DIFFREG_INSTANCES(S)                                                                  \
  template int64_t workspace_doubles(const Problem&, const Images<S>&, const Results<S>&);    \
  template void launch<2, S>(const Problem&, const Images<S>&, const Arithmetic<S>*, double*, \
                             const Results<S>&, void*);                                       \
  template void launch<3, S>(const Problem&, const Images<S>&, const Arithmetic<S>*, double*, \
                             const Results<S>&, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::local_correlation
