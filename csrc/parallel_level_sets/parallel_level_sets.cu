// f = 1 - Q / (A B) from the gradients of two images, in one pass, and its gradient in another:
// warps march down the columns of both.
#include "../common/block_reduce.h"
#include "../common/gradient_columns.h"
#include "../common/mask_total.h"
#include "parallel_level_sets_cuda.h"

namespace diffreg::parallel_level_sets {
namespace {

// A row of both images and of the mask, at a lane's column.
template <typename T>
struct Row {
  T image[2], weight;
};

// Both images' columns, one of each plane, and the mask's.
template <typename S>
struct Columns {
  using T = Arithmetic<S>;
  Column<S> image[2];
  MaskColumn<T> mask;

  // The row below row y.
  DIFFREG_DEVICE Row<T> below(int32_t y, bool inner) const {
    return {{image[0].at(y + 1, inner), image[1].at(y + 1, inner)}, mask.at(y + 1, inner)};
  }
};

// A rolling window of the last three rows of both images, where the first one hides, and the
// weights of the last two.
template <typename T>
struct RowWindow {
  T above[2], here[2], below[2];
  T weight, weight_below;
  HiddenRows hides;  // of the first image

  template <typename S>
  DIFFREG_DEVICE RowWindow(const Columns<S>& columns, int32_t y)
      : weight(columns.mask.at(y - 1)), weight_below(columns.mask.at(y)) {
    for (int k = 0; k < 2; ++k) {
      here[k] = columns.image[k].at(y - 1);
      below[k] = columns.image[k].at(y);
    }
    hides.move_down(here[0], weight);
    hides.move_down(below[0], weight_below);
    for (int k = 0; k < 2; ++k) {
      here[k] = visible(here[k], weight);
      below[k] = visible(below[k], weight_below);
    }
  }
  // Moves down a row, to the images' gradients there.
  DIFFREG_DEVICE void move_down(const Row<T>& next, T* g, T* h) {
    for (int k = 0; k < 2; ++k) {
      above[k] = here[k];
      here[k] = below[k];
      below[k] = visible(next.image[k], next.weight);
    }
    weight = weight_below;
    weight_below = next.weight;
    hides.move_down(next.image[0], next.weight);
    image_gradient(above[0], here[0], below[0], g);
    image_gradient(above[1], here[1], below[1], h);
  }
};

template <typename S, Variant variant>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    forward_kernel(Problem problem, GradientStrips strips, Images<S> images, Reduction reduction,
                   Arithmetic<S>* value) {  // (N)
  using T = Arithmetic<S>;
  const int32_t H = strips.height, W = strips.width;
  const int64_t sample_tiles = problem.channels * strips.per_plane;
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const int64_t n = place.plane / problem.channels, plane = place.plane * H * W;
    const Columns<S> columns{
        {{images.warped + plane, H, W, place.x}, {images.fixed + plane, H, W, place.x}},
        {images.mask, n, H, W, place.x}};
    const T eps_warped = load(images.eps_warped + n), eps_fixed = load(images.eps_fixed + n);
    RowWindow<T> rows(columns, place.y);
    T sum = 0, weights = 0;
    march(
        place.y, place.end, H - 1, [&](int32_t y, bool inner) { return columns.below(y, inner); },
        [&](int32_t y, const Row<T>& next, bool inner) {
          T g[2], h[2];
          rows.move_down(next, g, h);
          if (!inner && y >= place.end) return;
          const Voxel<2, T, variant> voxel(g, h, eps_warped, eps_fixed);
          sum += rows.weight * counted(voxel.value(), rows.weight);
          weights += rows.weight;
        });
    double sums[2] = {place.owns ? double(sum) : 0, place.owns ? double(weights) : 0};
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

// Blocks of a multiprocessor for which registers must do.
template <typename S, Variant variant>
constexpr int kGradientBlocks = sizeof(Arithmetic<S>) == 8 ? 2 : (variant == Variant::pls ? 4 : 3);

template <typename S, Variant variant>
__global__ void __launch_bounds__(kThreads, (kGradientBlocks<S, variant>))
    backward_kernel(Problem problem, AdjointStrips strips, Side<S> first_side, Side<S> second_side,
                    int64_t sides,
                    const Arithmetic<S>* mask,        // (N, 1, H, W) or null
                    const double* total,              // (N) or null
                    const Arithmetic<S>* gradient) {  // (N)
  using T = Arithmetic<S>;
  const int32_t H = strips.height, W = strips.width;
  for (int64_t index = blockIdx.x; index < sides * strips.count(); index += gridDim.x) {
    const bool first = index < strips.count();
    const auto place = strips.place(first ? index : index - strips.count());
    const Side<S> side = first ? first_side : second_side;
    const int64_t n = place.plane / problem.channels, plane = place.plane * H * W;
    const Columns<S> columns{
        {{side.own + plane, H, W, place.x}, {side.other + plane, H, W, place.x}},
        {mask, n, H, W, place.x}};
    const T eps_own = load(side.eps_own + n), eps_other = load(side.eps_other + n);
    const T factor =
        static_cast<T>(load(gradient + n) * per_voxel(total, n, int64_t{H} * W) / problem.channels);
    S* own = side.gradient + plane + place.x;
    RowWindow<T> rows(columns, place.y - 1);
    Adjoint<T> adjoint;
    march(
        place.y - 1, place.end + 1, H - 1,
        [&](int32_t y, bool inner) { return columns.below(y, inner); },
        [&](int32_t y, const Row<T>& next, bool inner) {
          T g[2], h[2], p[2];
          rows.move_down(next, g, h);
          const Voxel<2, T, variant> voxel(g, h, eps_own, eps_other);
          const T weight = factor * rows.weight;
          for (int k = 0; k < 2; ++k) {
            p[k] = weight * counted(voxel.derivative(g[k], h[k]), rows.weight);
          }
          const T sum = adjoint.advance(y, place.x, H, W, inner, p);
          if (!place.owns || y <= place.y || (!inner && y > place.end)) return;
          store(row_of(own, y - 1, W), rows.hides.above() ? T(0) : sum);
        });
  }
}

}  // namespace

int64_t forward_doubles(const Problem& problem) {
  return reduction_doubles(problem.samples, 2,
                           problem.channels * strips_of<GradientStrips>(problem).per_plane);
}

template <typename S>
void launch_forward(const Problem& problem, const Images<S>& images, double* workspace,
                    Arithmetic<S>* value, void* stream) {
  const auto strips = strips_of<GradientStrips>(problem);
  const Reduction reduction =
      make_reduction(workspace, problem.samples, 2, problem.channels * strips.per_plane, stream);
  dispatch_variant(problem.variant, [&](auto variant) {
    DIFFREG_LAUNCH((forward_kernel<S, decltype(variant)::value>), strips.count(), block_shape(),
                   stream, problem, strips, images, reduction, value);
  });
}

int64_t backward_doubles(const Problem& problem, bool masked) {
  return masked ? mask_total_doubles(problem.samples, problem.height * problem.width) : 0;
}

template <typename S>
void launch_backward(const Problem& problem, const Images<S>& images, const Arithmetic<S>* gradient,
                     double* workspace, S* grad_warped, S* grad_fixed, void* stream) {
  const auto strips = strips_of<AdjointStrips>(problem);
  const double* total = launch_mask_total(problem.samples, problem.height * problem.width,
                                          images.mask, workspace, stream);
  const Side<S> to_warped{images.warped, images.fixed, images.eps_warped, images.eps_fixed,
                          grad_warped};
  const Side<S> to_fixed{images.fixed, images.warped, images.eps_fixed, images.eps_warped,
                         grad_fixed};
  const int64_t sides = (grad_warped ? 1 : 0) + (grad_fixed ? 1 : 0);
  if (sides == 0) return;
  dispatch_variant(problem.variant, [&](auto variant) {
    DIFFREG_LAUNCH((backward_kernel<S, decltype(variant)::value>), sides * strips.count(),
                   block_shape(), stream, problem, strips, grad_warped ? to_warped : to_fixed,
                   to_fixed, sides, images.mask, total, gradient);
  });
}

#define DIFFREG_INSTANCES(S)                                                                      \
  template void launch_forward(const Problem&, const Images<S>&, double*, Arithmetic<S>*, void*); \
  template void launch_backward(const Problem&, const Images<S>&, const Arithmetic<S>*, double*,  \
                                S*, S*, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::parallel_level_sets
