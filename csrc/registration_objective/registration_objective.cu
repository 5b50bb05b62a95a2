// What an objective is made of beside the operators: upstream gradients of its parts, the terms,
// and the squared difference.
#include "../common/block_reduce.h"
#include "../common/mask_total.h"
#include "registration_objective_cuda.h"

namespace diffreg::registration_objective {
namespace {

// Calls run(sample) for every sample, one a thread.
template <typename Run>
DIFFREG_DEVICE void for_samples(int64_t samples, const Run& run) {
  for (int64_t block = blockIdx.x; block * kThreads < samples; block += gridDim.x) {
    const int64_t n = block * kThreads + thread_index();
    if (inside(n, samples)) run(n);
  }
}
int64_t sample_blocks(int64_t samples) { return (samples + kThreads - 1) / kThreads; }

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    upstream_kernel(Problem problem, Upstream<T> upstream, bool of_total,
                    T* parts) {  // (kParts, N)
  for_samples(problem.samples, [&](int64_t n) {
    const auto given = [&](const T* gradient) { return gradient ? double(load(gradient + n)) : 0; };
    const double total = of_total ? 1 : given(upstream.total);
    const Weights& weights = problem.weights;
    const double similarity = weights.similarity * total + given(upstream.similarity);
    const auto put = [&](int part, double value) {
      store(parts + part * problem.samples + n, static_cast<T>(value));
    };
    for (int k = 0; k < kMeasures; ++k) put(k, problem.mixture[k] * similarity);
    put(kMeasures, weights.diffusion * total + given(upstream.diffusion));
    put(kMeasures + 1, weights.bending * total + given(upstream.bending));
    put(kMeasures + 2, weights.determinant * total + given(upstream.determinant));
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    terms_kernel(Problem problem,
                 const T* measures,     // (kMeasures, N) or null
                 const T* diffusion,    // (N)
                 const T* bending,      // (N)
                 const T* determinant,  // (N)
                 T* similarity,         // (N)
                 T* total) {            // (N)
  for_samples(problem.samples, [&](int64_t n) {
    double sum = 0;
    for (int k = 0; k < kMeasures; ++k) {
      if (problem.mixture[k] == 0) continue;
      const double value = measures ? double(load(measures + k * problem.samples + n)) : k == kNcc;
      sum += problem.mixture[k] * value;
    }
    const Weights& weights = problem.weights;
    store(similarity + n, static_cast<T>(sum));
    store(total + n,
          static_cast<T>(weights.similarity * sum + weights.diffusion * load(diffusion + n) +
                         weights.bending * load(bending + n) +
                         weights.determinant * load(determinant + n)));
  });
}

// Chunks of a plane, one a block.
constexpr int64_t kChunk = 16 * kThreads;
int64_t chunks_of_plane(const Problem& problem) { return (problem.voxels + kChunk - 1) / kChunk; }

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    squares_kernel(Problem problem, int64_t of_plane,
                   const T* warped,      // (N, C, *S)
                   const T* fixed,       // (N, C, *S)
                   const T* mask,        // (N, 1, *S) or null
                   const double* total,  // (N) or null
                   Reduction reduction,
                   T* value,           // (N) or null
                   const T* upstream,  // (N)
                   T* gradient,        // (N, C, *S) or null
                   bool accumulate) {
  const int64_t of_sample = problem.channels * of_plane;
  for (int64_t index = blockIdx.x; index < problem.samples * of_sample; index += gridDim.x) {
    const int64_t plane = index / of_plane, n = plane / problem.channels;
    const double per = per_voxel(total, n, problem.voxels) / problem.channels;
    const T factor = gradient ? static_cast<T>(load(upstream + n) * per) : T(0);
    const int64_t first = (index - plane * of_plane) * kChunk + thread_index();
    double sum[1] = {0};
#pragma unroll 4
    for (int64_t k = 0; k < kChunk; k += kThreads) {
      const int64_t voxel = first + k, at = plane * problem.voxels + voxel;
      if (!inside(voxel, problem.voxels)) break;
      const T weight = mask ? load(mask + n * problem.voxels + voxel) : T(1);
      const T w = load(warped + at), r = load(fixed + at);
      sum[0] += weight * counted(squared_difference(w, r), weight);
      if (!gradient) continue;
      const T slope = factor * weight * counted(squared_difference_slope(w, r), weight);
      store(gradient + at, accumulate ? load(gradient + at) + slope : slope);
    }
    if (!value) continue;
    reduce_tiles(reduction, sum, n, index - n * of_sample, of_sample,
                 [&](const double* all) { store(value + n, static_cast<T>(all[0] * per)); });
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    clear_kernel(Problem problem, int64_t of_sample,
                 const T* upstream,  // (kMeasures, N)
                 T* gradient) {      // (N, C, *S)
  const int64_t values = problem.channels * problem.voxels;
  for (int64_t index = blockIdx.x; index < problem.samples * of_sample; index += gridDim.x) {
    const int64_t n = index / of_sample, first = (index - n * of_sample) * kChunk;
    bool weighed = false;
    for (int k = 0; k < kMeasures; ++k) weighed |= load(upstream + k * problem.samples + n) != 0;
    if (weighed) continue;
    const int64_t end = first + kChunk < values ? first + kChunk : values;
    for (int64_t k = first + thread_index(); k < end; k += kThreads) {
      store(gradient + n * values + k, T(0));
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident)
    scale_kernel(int64_t samples, int64_t values, int64_t of_sample, const T* factor,
                 int64_t stride,  // (N), so far apart
                 T* tensor) {     // (N, values)
  for (int64_t index = blockIdx.x; index < samples * of_sample; index += gridDim.x) {
    const int64_t n = index / of_sample, first = (index - n * of_sample) * kChunk;
    const T by = load(factor + n * stride);
    if (by == 1) continue;
    const int64_t end = first + kChunk < values ? first + kChunk : values;
#pragma unroll 4
    for (int64_t k = first + thread_index(); k < end; k += kThreads) {
      T* at = tensor + n * values + k;
      store(at, by == 0 ? T(0) : by * load(at));
    }
  }
}

}  // namespace

template <typename T>
void launch_upstream(const Problem& problem, const Upstream<T>* upstream, T* parts, void* stream) {
  DIFFREG_LAUNCH(upstream_kernel<T>, sample_blocks(problem.samples), block_shape(), stream, problem,
                 upstream ? *upstream : Upstream<T>{}, upstream == nullptr, parts);
}

template <typename T>
void launch_terms(const Problem& problem, const T* measures, const T* diffusion, const T* bending,
                  const T* determinant, T* similarity, T* total, void* stream) {
  DIFFREG_LAUNCH(terms_kernel<T>, sample_blocks(problem.samples), block_shape(), stream, problem,
                 measures, diffusion, bending, determinant, similarity, total);
}

int64_t squares_doubles(const Problem& problem) {
  return mask_total_doubles(problem.samples, problem.voxels) +
         reduction_doubles(problem.samples, 1, problem.channels * chunks_of_plane(problem));
}

template <typename T>
void launch_squares(const Problem& problem, const T* warped, const T* fixed, const T* mask,
                    double* workspace, T* value, const T* upstream, T* gradient, bool accumulate,
                    void* stream) {
  const int64_t of_plane = chunks_of_plane(problem), of_sample = problem.channels * of_plane;
  double* sums = workspace + mask_total_doubles(problem.samples, problem.voxels);
  const double* total = launch_mask_total(problem.samples, problem.voxels, mask, workspace, stream);
  Reduction reduction{};
  if (value) reduction = make_reduction(sums, problem.samples, 1, of_sample, stream);
  DIFFREG_LAUNCH(squares_kernel<T>, problem.samples * of_sample, block_shape(), stream, problem,
                 of_plane, warped, fixed, mask, total, reduction, value, upstream, gradient,
                 accumulate);
}

template <typename T>
void launch_clear(const Problem& problem, const T* upstream, T* gradient, void* stream) {
  const int64_t of_sample = problem.channels * chunks_of_plane(problem);
  DIFFREG_LAUNCH(clear_kernel<T>, problem.samples * of_sample, block_shape(), stream, problem,
                 of_sample, upstream, gradient);
}

template <typename T>
void launch_scale(int64_t samples, int64_t values, const T* factor, int64_t stride, T* tensor,
                  void* stream) {
  const int64_t of_sample = (values + kChunk - 1) / kChunk;
  DIFFREG_LAUNCH(scale_kernel<T>, samples * of_sample, block_shape(), stream, samples, values,
                 of_sample, factor, stride, tensor);
}

#define DIFFREG_INSTANCES(T)                                                                 \
  template void launch_scale(int64_t, int64_t, const T*, int64_t, T*, void*);                \
  template void launch_clear(const Problem&, const T*, T*, void*);                           \
  template void launch_upstream(const Problem&, const Upstream<T>*, T*, void*);              \
  template void launch_terms(const Problem&, const T*, const T*, const T*, const T*, T*, T*, \
                             void*);                                                         \
  template void launch_squares(const Problem&, const T*, const T*, const T*, double*, T*,    \
                               const T*, T*, bool, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)

}  // namespace diffreg::registration_objective
