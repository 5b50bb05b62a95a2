// f = 1 - Q / (A B) from the gradients of two images, in one pass, and its gradient in another: the
// slopes of a tile take the place of its images in shared memory, and every voxel gathers from its
// neighbours. Called by parallel_level_sets_cuda.cpp.
#include "../common/block_reduce.h"
#include "../common/gradient_tile.h"
#include "../common/mask_total.h"
#include "parallel_level_sets_cuda.h"

namespace diffreg::parallel_level_sets {
namespace {

template <typename S>
GradientTiles<S> tiles_of(const Problem& problem) {
  return {problem.samples * problem.channels, problem.height, problem.width};
}

template <typename S, Variant variant>
__global__ void __launch_bounds__(kThreads, kResident)
    forward_kernel(Problem problem, GradientTiles<S> tiles, Images<S> images, Reduction reduction,
                   Arithmetic<S>* value) {  // (N)
  using T = Arithmetic<S>;
  using Shared = ImageTile<S, 2, 1>;
  DIFFREG_SHARED(Shared, tile);
  const int64_t H = problem.height, W = problem.width,
                sample_tiles = problem.channels * tiles.per_plane();
  for (int64_t index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
    const auto place = tiles.place(index);
    const int64_t n = place.plane / problem.channels;
    tile.fill(0, images.warped + place.plane * H * W, tiles, place.y, place.x);
    tile.fill(1, images.fixed + place.plane * H * W, tiles, place.y, place.x);
    __syncthreads();
    const T eps_warped = load(images.eps_warped + n), eps_fixed = load(images.eps_fixed + n);
    T sum = 0, weights = 0;
    for_tile<kTileColumns<S>, kGradientRows>([&](int row, int column) {
      const int64_t y = place.y + row, x = place.x + column;
      if (!inside(y, H) || !inside(x, W)) return;
      T g[2], h[2];
      tile.gradient(0, row, column, g);
      tile.gradient(1, row, column, h);
      const T weight = images.mask ? load(images.mask + (n * H + y) * W + x) : T(1);
      sum += weight * Voxel<T, variant>(g, h, eps_warped, eps_fixed).value();
      weights += weight;
    });
    double sums[2] = {sum, weights};
    // Its barriers also part this tile from the next.
    reduce_tiles(reduction, sums, n, index % sample_tiles, sample_tiles, [&](const double* total) {
      const double per = total[1] == 0 ? 0 : 1 / total[1];
      store(value + n, static_cast<T>(total[0] * per));
    });
  }
}

// The image that a gradient goes to, and the other one.
template <typename S>
struct Side {
  const S* own;                    // (N, C, H, W)
  const S* other;                  // (N, C, H, W)
  const Arithmetic<S>* eps_own;    // (N)
  const Arithmetic<S>* eps_other;  // (N)
  S* gradient;                     // (N, C, H, W)
};

template <typename S, Variant variant>
__global__ void __launch_bounds__(kThreads, kResident)
    backward_kernel(Problem problem, GradientTiles<S> tiles, Side<S> first_side,
                    Side<S> second_side, int64_t sides,
                    const Arithmetic<S>* mask,        // (N, 1, H, W) or null
                    const double* total,              // (N) or null
                    const Arithmetic<S>* gradient) {  // (N)
  using T = Arithmetic<S>;
  using Shared = GradientMemory<S, 2>;
  DIFFREG_SHARED(Shared, memory);
  const int64_t H = problem.height, W = problem.width;
  for (int64_t index = blockIdx.x; index < sides * tiles.count(); index += gridDim.x) {
    const auto place = tiles.place(index % tiles.count());
    const Side<S> side = index < tiles.count() ? first_side : second_side;
    const int64_t n = place.plane / problem.channels, plane = place.plane * H * W;
    __syncthreads();  // the last tile's slopes have been read
    memory.pixels.fill(0, side.own + plane, tiles, place.y, place.x);
    memory.pixels.fill(1, side.other + plane, tiles, place.y, place.x);
    __syncthreads();
    const T eps_own = load(side.eps_own + n), eps_other = load(side.eps_other + n);
    const T factor =
        static_cast<T>(load(gradient + n) * per_voxel(total, n, H * W) / problem.channels);
    replace_by_slopes<S, 2>(
        memory, tiles, place.y, place.x, [&](int row, int column, int64_t y, int64_t x, T* p) {
          T g[2], h[2];
          memory.pixels.gradient(0, row, column, g);
          memory.pixels.gradient(1, row, column, h);
          const Voxel<T, variant> voxel(g, h, eps_own, eps_other);
          const T weight = mask ? factor * load(mask + (n * H + y) * W + x) : factor;
          for (int k = 0; k < 2; ++k) p[k] = weight * voxel.derivative(g[k], h[k]);
        });
    for_tile<kTileColumns<S>, kGradientRows>([&](int row, int column) {
      const int64_t y = place.y + row, x = place.x + column;
      if (!inside(y, H) || !inside(x, W)) return;
      store(side.gradient + plane + y * W + x, adjoint(memory, tiles, row, column, y, x));
    });
  }
}

template <Variant value>
struct VariantTag {
  static constexpr Variant variant = value;
};

template <typename Run>
void dispatch_variant(Variant variant, const Run& run) {
  switch (variant) {
    case Variant::pls: return run(VariantTag<Variant::pls>{});
    case Variant::smooth: return run(VariantTag<Variant::smooth>{});
    case Variant::ngf: return run(VariantTag<Variant::ngf>{});
  }
}

}  // namespace

template <typename S>
int64_t forward_doubles(const Problem& problem) {
  return reduction_doubles(problem.samples, 2, problem.channels * tiles_of<S>(problem).per_plane());
}

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images, double* workspace,
                    Arithmetic<S>* value, void* stream) {
  const auto tiles = tiles_of<S>(problem);
  const Reduction reduction =
      make_reduction(workspace, problem.samples, 2, problem.channels * tiles.per_plane(), stream);
  dispatch_variant(problem.variant, [&](auto tag) {
    DIFFREG_LAUNCH((forward_kernel<S, decltype(tag)::variant>), tiles.count(), block_shape(),
                   stream, problem, tiles, images, reduction, value);
  });
}

int64_t backward_doubles(const Problem& problem, bool masked) {
  return masked ? mask_total_doubles(problem.samples, problem.height * problem.width) : 0;
}

template <typename S>
void launch_backward(const Problem& problem, const Images<S>& images, const Arithmetic<S>* gradient,
                     double* workspace, S* grad_warped, S* grad_fixed, void* stream) {
  const auto tiles = tiles_of<S>(problem);
  const double* total = launch_mask_total(problem.samples, problem.height * problem.width,
                                          images.mask, workspace, stream);
  const Side<S> to_warped{images.warped, images.fixed, images.eps_warped, images.eps_fixed,
                          grad_warped};
  const Side<S> to_fixed{images.fixed, images.warped, images.eps_fixed, images.eps_warped,
                         grad_fixed};
  const int64_t sides = (grad_warped ? 1 : 0) + (grad_fixed ? 1 : 0);
  if (sides == 0) return;
  dispatch_variant(problem.variant, [&](auto tag) {
    DIFFREG_LAUNCH((backward_kernel<S, decltype(tag)::variant>), sides * tiles.count(),
                   block_shape(), stream, problem, tiles, grad_warped ? to_warped : to_fixed,
                   to_fixed, sides, images.mask, total, gradient);
  });
}

#define DIFFREG_INSTANCES(S)                                                                      \
  template int64_t forward_doubles<S>(const Problem&);                                            \
  template void launch_forward(const Problem&, const Images<S>&, double*, Arithmetic<S>*, void*); \
  template void launch_backward(const Problem&, const Images<S>&, const Arithmetic<S>*, double*,  \
                                S*, S*, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::parallel_level_sets
