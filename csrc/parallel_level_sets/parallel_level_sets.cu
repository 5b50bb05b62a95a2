// f = 1 - Q / (A B) from the gradients of two images, in one pass, and its gradient in another:
// warps march along the columns of both.
#include "../common/block_reduce.h"
#include "../common/gradient_columns.h"
#include "../common/mask_total.h"
#include "parallel_level_sets_cuda.h"

namespace diffreg::parallel_level_sets {
namespace {

// Of a sample's scales, for gradients that are doubled.
template <typename T>
DIFFREG_DEVICE Scales<T> scales_of(Variant variant, const PerSample<T>& eps_g,
                                   const PerSample<T>& eps_h, int64_t n) {
  return Scales<T>(variant, 2 * load(eps_g, n), 2 * load(eps_h, n));
}

// Blocks of a multiprocessor for which registers must do: of a volume's with a mask, two would
// spill.
template <int D, bool masked, int blocks>
constexpr int kBlocks = D == 3 && masked ? 1 : blocks;

template <int D, typename S, bool masked>
__global__ void __launch_bounds__(kThreads, (kBlocks<D, masked, kGradientBlocks<D, S>>))
    forward_kernel(Problem<D> problem, GradientStrips<D, S> strips, bool packed, Images<S> images,
                   Reduction reduction,
                   Arithmetic<S>* value) {  // (N)
  using T = Arithmetic<S>;
  constexpr int V = kPackColumns<S>, kSums = masked ? 2 : 1;
  const Extent<D>& extent = strips.extent;
  const int64_t sample_tiles = problem.channels * strips.per_image;
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const int64_t n = place.image / problem.channels, first = place.image * extent.voxels;
    const PackColumns<D, V> lane(extent, place.column, packed);
    const GradientColumns<D, S, 2, masked> columns{
        lane,
        {lane.top(images.warped + first), lane.top(images.fixed + first)},
        masked ? lane.top(images.mask + n * extent.voxels) : nullptr};
    const Scales<T> scales = scales_of(problem.variant, images.eps_warped, images.eps_fixed, n);
    GradientWindow<D, T, V, 2, masked> window(columns, place.first);
    T sum[kSums][V] = {};
    march<kGradientBatch<D, 2, masked>>(
        place.first, place.end, extent.layers() - 1,
        [&](int32_t z, bool inner) { return columns.read(z, inner); },
        [&](int32_t z, const auto& layer, bool inner) {
          T g[V][D], h[V][D];
          window.move(layer);
          window.gradient(0, lane, layer, g);
          window.gradient(1, lane, layer, h);
          if (!inner && z >= place.end) return;
          for (int j = 0; j < V; ++j) {
            const Voxel<D, T> voxel(g[j], h[j], scales);
            sum[0][j] += window.weighted(j, voxel.value());
            if constexpr (masked) sum[1][j] += window.weight.of[j];
          }
        });
    double sums[kSums];
    for (int k = 0; k < kSums; ++k) sums[k] = lane.owned_sum(place.owns, sum[k]);
    // Its barriers also part this tile from the next.
    reduce_tiles(reduction, sums, n, index % sample_tiles, sample_tiles, [&](const double* total) {
      const double weight = masked ? total[kSums - 1] : double(problem.channels * extent.voxels);
      store(value + n, static_cast<T>(weight == 0 ? 0 : total[0] * (1 / weight)));
    });
  }
}

// The image that a gradient goes to, and the other one.
template <typename S>
struct Side {
  const S* own;    // (N, C, *S)
  const S* other;  // (N, C, *S)
  PerSample<Arithmetic<S>> eps_own, eps_other;
  S* gradient;  // (N, C, *S)
};

template <int D, typename S, bool masked>
__global__ void __launch_bounds__(kThreads, (kBlocks<D, masked, kResident>))
    backward_kernel(Problem<D> problem, AdjointStrips<D, S> strips, bool packed, Side<S> first_side,
                    Side<S> second_side, int64_t sides,
                    const Arithmetic<S>* mask,      // (N, 1, *S) or null
                    const double* total,            // (N) or null
                    const Arithmetic<S>* gradient,  // (N)
                    bool accumulate) {
  using T = Arithmetic<S>;
  constexpr int V = kPackColumns<S>;
  const Extent<D>& extent = strips.extent;
  for (int64_t index = blockIdx.x; index < sides * strips.count(); index += gridDim.x) {
    const bool first = index < strips.count();
    const auto place = strips.place(first ? index : index - strips.count());
    const Side<S> side = first ? first_side : second_side;
    const int64_t n = place.image / problem.channels, image = place.image * extent.voxels;
    const PackColumns<D, V> lane(extent, place.column, packed);
    const GradientColumns<D, S, 2, masked> columns{
        lane,
        {lane.top(side.own + image), lane.top(side.other + image)},
        masked ? lane.top(mask + n * extent.voxels) : nullptr};
    S* const to = lane.top(side.gradient + image);
    const Scales<T> scales = scales_of(problem.variant, side.eps_own, side.eps_other, n);
    const T factor =
        static_cast<T>(load(gradient + n) * per_voxel(total, n, extent.voxels) / problem.channels);
    GradientWindow<D, T, V, 2, masked> window(columns, place.first - 1);
    Adjoint<D, T, V> adjoint;
    march<kAdjointBatch<D, 2, masked>>(
        place.first - 1, place.end + 1, extent.layers() - 1,
        [&](int32_t z, bool inner) { return columns.read(z, inner); },
        [&](int32_t z, const auto& layer, bool inner) {
          T g[V][D], h[V][D], p[V][D];
          window.move(layer);
          window.gradient(0, lane, layer, g);
          window.gradient(1, lane, layer, h);
          for (int j = 0; j < V; ++j) {
            const auto slopes =
                Voxel<D, T>(g[j], h[j], scales).slopes(factor * window.weight_of(j));
            for (int k = 0; k < D; ++k) {
              p[j][k] = window.counted_at(j, slopes.along(g[j][k], h[j][k]));
            }
          }
          Pack<T, V> sum = adjoint.advance(lane, p);
          if (!place.owns || z <= place.first || (!inner && z > place.end)) return;
          window.leave_out_hidden(sum);
          lane.store(to, z - 1, sum, accumulate);
        });
  }
}

template <int D, typename S>
bool packed(const Problem<D>& problem, const Images<S>& images) {
  constexpr int V = kPackColumns<S>;
  const int64_t width = problem.size[D - 1];
  return rows_are_packed<V>(images.warped, width) && rows_are_packed<V>(images.fixed, width) &&
         rows_are_packed<V>(images.mask, width);
}

}  // namespace

template <typename S, int D>
int64_t forward_doubles(const Problem<D>& problem) {
  const auto strips = strips_of<GradientStrips<D, S>>(problem);
  return reduction_doubles(problem.samples, 2, problem.channels * strips.per_image);
}

template <int D, typename S>
void launch_forward(const Problem<D>& problem, const Images<S>& images, double* workspace,
                    Arithmetic<S>* value, void* stream) {
  const auto strips = strips_of<GradientStrips<D, S>>(problem);
  const Reduction reduction =
      make_reduction(workspace, problem.samples, 2, problem.channels * strips.per_image, stream);
  dispatch_mask(images.mask, [&](auto masked) {
    DIFFREG_LAUNCH((forward_kernel<D, S, decltype(masked)::value>), strips.count(), block_shape(),
                   stream, problem, strips, packed(problem, images), images, reduction, value);
  });
}

template <int D>
int64_t backward_doubles(const Problem<D>& problem, bool masked) {
  return masked ? mask_total_doubles(problem.samples, Extent<D>(problem.size).voxels) : 0;
}

template <int D, typename S>
void launch_backward(const Problem<D>& problem, const Images<S>& images,
                     const Arithmetic<S>* gradient, double* workspace, S* grad_warped,
                     S* grad_fixed, bool accumulate, void* stream) {
  const auto strips = strips_of<AdjointStrips<D, S>>(problem);
  const double* total =
      launch_mask_total(problem.samples, strips.extent.voxels, images.mask, workspace, stream);
  const Side<S> to_warped{images.warped, images.fixed, images.eps_warped, images.eps_fixed,
                          grad_warped};
  const Side<S> to_fixed{images.fixed, images.warped, images.eps_fixed, images.eps_warped,
                         grad_fixed};
  const int64_t sides = (grad_warped ? 1 : 0) + (grad_fixed ? 1 : 0);
  if (sides == 0) return;
  dispatch_mask(images.mask, [&](auto masked) {
    DIFFREG_LAUNCH((backward_kernel<D, S, decltype(masked)::value>), sides * strips.count(),
                   block_shape(), stream, problem, strips, packed(problem, images),
                   grad_warped ? to_warped : to_fixed, to_fixed, sides, images.mask, total,
                   gradient, accumulate);
  });
}

#define DIFFREG_INSTANCES(D, S)                                                              \
  template int64_t forward_doubles<S>(const Problem<D>&);                                    \
  template void launch_forward(const Problem<D>&, const Images<S>&, double*, Arithmetic<S>*, \
                               void*);                                                       \
  template void launch_backward(const Problem<D>&, const Images<S>&, const Arithmetic<S>*,   \
                                double*, S*, S*, bool, void*);
DIFFREG_EACH_CASE(DIFFREG_INSTANCES)
template int64_t backward_doubles(const Problem<2>&, bool masked);
template int64_t backward_doubles(const Problem<3>&, bool masked);

}  // namespace diffreg::parallel_level_sets
