// eta * mean |grad I| and its floor in one pass over the image; the gradient in one, too, which the
// last block of a sample takes back where the floor holds: it does not pass there.
#include "../common/block_reduce.h"
#include "../common/gradient_columns.h"
#include "../common/mask_total.h"
#include "gradient_scale_cuda.h"

namespace diffreg::gradient_scale {
namespace {

// eta * mean, and the floor.
struct Scale {
  double mean, floor;

  // Of the sum of twice the weighted magnitudes.
  template <int D>
  DIFFREG_DEVICE Scale(const Problem<D>& problem, double sum, double per_voxel, double largest)
      : mean(problem.eta * (0.5 * sum) * per_voxel),
        floor(floor_of(largest, problem.smallest_normal)) {}
  DIFFREG_DEVICE bool is_floored() const { return mean < floor; }
};

template <typename T, int V>
DIFFREG_DEVICE void include(const Pack<T, V>& values, T& largest) {
  for (int j = 0; j < V; ++j) largest = std::fmax(largest, std::abs(values.of[j]));
}

// Combines sums and the largest value of all tiles of a sample. True in its last block, where
// thread 0 holds them.
template <int K>
DIFFREG_DEVICE bool reduce_measure(const Reduction& reduction, double (&sums)[K],
                                   double (&largest)[1], int64_t n, int64_t tile, int64_t tiles) {
  reduce_block<1, Max>(largest);  // its barriers also part this tile from the next
  reduce_block(sums);
  double partial[K + 1];
  for (int k = 0; k < K; ++k) partial[k] = sums[k];
  partial[K] = largest[0];
  store_partials(reduction, partial, n, tile, tiles);
  if (!is_last_block(reduction.tickets + n, tiles)) return false;
  const double* partials = reduction.partials + n * (K + 1) * tiles;
  for (int k = 0; k < K; ++k) sums[k] = block_stride_reduce(partials + k * tiles, tiles);
  largest[0] = block_stride_reduce<Max>(partials + K * tiles, tiles);
  reduce_block<1, Max>(largest);
  reduce_block(sums);
  return true;
}

template <int D, typename S, bool masked>
__global__ void __launch_bounds__(kThreads, (kGradientBlocks<D, S>))
    forward_kernel(Problem<D> problem, GradientStrips<D, S> strips, bool packed,
                   const S* image,             // (N, C, *S)
                   const Arithmetic<S>* mask,  // (N, 1, *S) or null
                   Reduction reduction,
                   Arithmetic<S>* scale) {  // (N)
  using T = Arithmetic<S>;
  constexpr int V = kPackColumns<S>, kSums = masked ? 2 : 1;
  const Extent<D>& extent = strips.extent;
  const int64_t sample_tiles = problem.channels * strips.per_image;
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const int64_t n = place.image / problem.channels;
    const int64_t first = place.image * extent.voxels;
    const PackColumns<D, V> lane(extent, place.column, packed);
    const GradientColumns<D, S, 1, masked> columns{
        lane, {lane.top(image + first)}, masked ? lane.top(mask + n * extent.voxels) : nullptr};
    GradientWindow<D, T, V, 1, masked> window(columns, place.first);
    T sum[kSums][V] = {}, largest = 0;
    march<kGradientBatch<D, 1, masked>>(
        place.first, place.end, extent.layers() - 1,
        [&](int32_t z, bool inner) { return columns.read(z, inner); },
        [&](int32_t z, const auto& layer, bool inner) {
          T g[V][D];
          window.move(layer);
          window.gradient(0, lane, layer, g);
          include(window.here[0], largest);
          if (!inner && z >= place.end) return;
          for (int j = 0; j < V; ++j) {
            sum[0][j] += window.weighted(j, magnitude<D>(g[j]));
            if constexpr (masked) sum[1][j] += window.weight.of[j];
          }
        });
    double sums[kSums], most[1] = {largest};
    for (int k = 0; k < kSums; ++k) sums[k] = lane.owned_sum(place.owns, sum[k]);
    if (!reduce_measure(reduction, sums, most, n, index % sample_tiles, sample_tiles)) continue;
    if (thread_index() != 0) continue;
    const double weight = masked ? sums[kSums - 1] : double(problem.channels * extent.voxels);
    const Scale found(problem, sums[0], weight == 0 ? 0 : 1 / weight, most[0]);
    store(scale + n, static_cast<T>(found.is_floored() ? found.floor : found.mean));
  }
}

template <int D, typename S, bool masked>
__global__ void __launch_bounds__(kThreads, kResident)
    backward_kernel(Problem<D> problem, AdjointStrips<D, S> strips, bool packed,
                    const Arithmetic<S>* gradient,  // (N)
                    const S* image,                 // (N, C, *S)
                    const Arithmetic<S>* mask,      // (N, 1, *S) or null
                    const double* total,            // (N) or null
                    Reduction reduction,
                    S* grad_image) {  // (N, C, *S)
  using T = Arithmetic<S>;
  constexpr int V = kPackColumns<S>;
  const Extent<D>& extent = strips.extent;
  const int64_t sample_tiles = problem.channels * strips.per_image;
  DIFFREG_SHARED(bool, floored);
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const int64_t n = place.image / problem.channels;
    const int64_t first = place.image * extent.voxels;
    const PackColumns<D, V> lane(extent, place.column, packed);
    const GradientColumns<D, S, 1, masked> columns{
        lane, {lane.top(image + first)}, masked ? lane.top(mask + n * extent.voxels) : nullptr};
    const double per = per_voxel(total, n, extent.voxels) / problem.channels;
    const T factor = static_cast<T>(0.5 * load(gradient + n) * problem.eta * per);
    GradientWindow<D, T, V, 1, masked> window(columns, place.first - 1);
    S* const to = lane.top(grad_image + first);
    Adjoint<D, T, V> adjoint;
    T sum[V] = {}, largest = 0;
    march<kAdjointBatch<D, 1, masked>>(
        place.first - 1, place.end + 1, extent.layers() - 1,
        [&](int32_t z, bool inner) { return columns.read(z, inner); },
        [&](int32_t z, const auto& layer, bool inner) {
          T g[V][D], p[V][D];
          window.move(layer);
          window.gradient(0, lane, layer, g);
          include(window.here[0], largest);
          const bool counts = z >= place.first && z < place.end;
          for (int j = 0; j < V; ++j) {
            const T square = squares<D>(g[j]), by = inverse_magnitude(square);
            const T slope = factor * window.weight_of(j) * by;
            if (counts) sum[j] += window.weighted(j, square * by);
            for (int k = 0; k < D; ++k) p[j][k] = window.counted_at(j, slope * g[j][k]);
          }
          Pack<T, V> own = adjoint.advance(lane, p);
          if (!place.owns || z <= place.first || (!inner && z > place.end)) return;
          window.leave_out_hidden(own);
          lane.store(to, z - 1, own);
        });
    double sums[1] = {lane.owned_sum(place.owns, sum)}, most[1] = {largest};
    if (!reduce_measure(reduction, sums, most, n, index % sample_tiles, sample_tiles)) continue;
    if (thread_index() == 0) floored = Scale(problem, sums[0], per, most[0]).is_floored();
    __syncthreads();
    if (!floored) continue;
    const int64_t voxels = problem.channels * extent.voxels;
    for (int64_t voxel = thread_index(); voxel < voxels; voxel += kThreads) {
      store(grad_image + n * voxels + voxel, T(0));
    }
  }
}

template <int D, typename S>
bool packed(const Problem<D>& problem, const S* image, const Arithmetic<S>* mask) {
  constexpr int V = kPackColumns<S>;
  const int64_t width = problem.size[D - 1];
  return rows_are_packed<V>(image, width) && rows_are_packed<V>(mask, width);
}

}  // namespace

template <typename S, int D>
int64_t forward_doubles(const Problem<D>& problem) {
  const auto strips = strips_of<GradientStrips<D, S>>(problem);
  return reduction_doubles(problem.samples, 3, problem.channels * strips.per_image);
}

template <int D, typename S>
void launch_forward(const Problem<D>& problem, const S* image, const Arithmetic<S>* mask,
                    double* workspace, Arithmetic<S>* scale, void* stream) {
  const auto strips = strips_of<GradientStrips<D, S>>(problem);
  const Reduction reduction =
      make_reduction(workspace, problem.samples, 3, problem.channels * strips.per_image, stream);
  dispatch_mask(mask, [&](auto masked) {
    DIFFREG_LAUNCH((forward_kernel<D, S, decltype(masked)::value>), strips.count(), block_shape(),
                   stream, problem, strips, packed(problem, image, mask), image, mask, reduction,
                   scale);
  });
}

template <typename S, int D>
int64_t backward_doubles(const Problem<D>& problem, bool masked) {
  const auto strips = strips_of<AdjointStrips<D, S>>(problem);
  const int64_t of_mask = masked ? mask_total_doubles(problem.samples, strips.extent.voxels) : 0;
  return of_mask + reduction_doubles(problem.samples, 2, problem.channels * strips.per_image);
}

template <int D, typename S>
void launch_backward(const Problem<D>& problem, const Arithmetic<S>* gradient, const S* image,
                     const Arithmetic<S>* mask, double* workspace, S* grad_image, void* stream) {
  const auto strips = strips_of<AdjointStrips<D, S>>(problem);
  const int64_t tiles = problem.channels * strips.per_image;
  const Reduction reduction = make_reduction(workspace, problem.samples, 2, tiles, stream);
  const double* total =
      launch_mask_total(problem.samples, strips.extent.voxels, mask,
                        workspace + reduction_doubles(problem.samples, 2, tiles), stream);
  dispatch_mask(mask, [&](auto masked) {
    DIFFREG_LAUNCH((backward_kernel<D, S, decltype(masked)::value>), strips.count(), block_shape(),
                   stream, problem, strips, packed(problem, image, mask), gradient, image, mask,
                   total, reduction, grad_image);
  });
}

#define DIFFREG_INSTANCES(D, S)                                                            \
  template int64_t forward_doubles<S>(const Problem<D>&);                                  \
  template void launch_forward(const Problem<D>&, const S*, const Arithmetic<S>*, double*, \
                               Arithmetic<S>*, void*);                                     \
  template int64_t backward_doubles<S>(const Problem<D>&, bool);                           \
  template void launch_backward(const Problem<D>&, const Arithmetic<S>*, const S*,         \
                                const Arithmetic<S>*, double*, S*, void*);
DIFFREG_EACH_CASE(DIFFREG_INSTANCES)

}  // namespace diffreg::gradient_scale
