// eta * mean |grad I| and its floor in one pass over the image; the gradient in a second one, after
// a first that finds out whether the floor holds.
#include "../common/block_reduce.h"
#include "../common/gradient_columns.h"
#include "gradient_scale_cuda.h"

namespace diffreg::gradient_scale {
namespace {

// What a sample comes to. The gradient does not pass where the floor holds.
struct Measure {
  double scale, per_voxel, floored;
};

// The column of an image and of its mask, and a rolling window of the image's last three rows.
template <typename S>
struct RowWindow {
  using T = Arithmetic<S>;
  Column<S> image;
  MaskColumn<T> mask;
  T above, here, below;
  T weight, weight_below;  // of the rows `here` and `below`
  HiddenRows hides;

  struct Row {
    T below, weight;  // both of the row below
  };

  // To march down from row y on.
  DIFFREG_DEVICE RowWindow(const Column<S>& image, const MaskColumn<T>& mask, int32_t y)
      : image(image),
        mask(mask),
        here(image.at(y - 1)),
        below(image.at(y)),
        weight(mask.at(y - 1)),
        weight_below(mask.at(y)) {
    hides.move_down(here, weight);
    hides.move_down(below, weight_below);
    here = visible(here, weight);
    below = visible(below, weight_below);
  }

  DIFFREG_DEVICE Row read(int32_t y, bool inner) const {
    return {image.at(y + 1, inner), mask.at(y + 1, inner)};
  }
  // Moves down a row, to the image's gradient there.
  DIFFREG_DEVICE void move_down(const Row& next, T* g) {
    above = here;
    here = below;
    weight = weight_below;
    below = visible(next.below, next.weight);
    weight_below = next.weight;
    hides.move_down(next.below, next.weight);
    image_gradient(above, here, below, g);
  }
};

// Sum of the weighted magnitudes, sum of the weights, and the largest |I|, of every tile.
template <typename S, typename Finish>
DIFFREG_DEVICE void measure_tiles(const Problem& problem, const GradientStrips& strips,
                                  const S* image, const Arithmetic<S>* mask,
                                  const Reduction& reduction, const Finish& finish) {
  using T = Arithmetic<S>;
  using Row = typename RowWindow<S>::Row;
  const int32_t H = strips.height, W = strips.width;
  const int64_t sample_tiles = problem.channels * strips.per_plane;
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const int64_t n = place.plane / problem.channels;
    RowWindow<S> rows({image + place.plane * H * W, H, W, place.x}, {mask, n, H, W, place.x},
                      place.y);
    T sum = 0, weights = 0, largest = 0;
    march(
        place.y, place.end, H - 1, [&](int32_t y, bool inner) { return rows.read(y, inner); },
        [&](int32_t y, const Row& next, bool inner) {
          T g[2];
          rows.move_down(next, g);
          const T size = std::abs(rows.here);
          largest = size > largest ? size : largest;
          if (!inner && y >= place.end) return;
          sum += rows.weight * counted(magnitude<2>(g), rows.weight);
          weights += rows.weight;
        });
    if (!place.owns) sum = weights = 0;
    double sums[2] = {sum, weights}, most[1] = {largest};
    reduce_block<1, Max>(most);  // its barriers also part this tile from the next
    reduce_block(sums);
    const double tile_sums[3] = {sums[0], sums[1], most[0]};
    store_partials(reduction, tile_sums, n, index % sample_tiles, sample_tiles);
    if (!is_last_block(reduction.tickets + n, sample_tiles)) continue;
    const double* partials = reduction.partials + n * 3 * sample_tiles;
    most[0] = block_stride_reduce<Max>(partials + 2 * sample_tiles, sample_tiles);
    for (int k = 0; k < 2; ++k)
      sums[k] = block_stride_reduce(partials + k * sample_tiles, sample_tiles);
    reduce_block<1, Max>(most);
    reduce_block(sums);
    if (thread_index() == 0) finish(n, sums, most[0]);
  }
}

DIFFREG_DEVICE Measure measured(const Problem& problem, const double* sums, double largest) {
  const double per = sums[1] == 0 ? 0 : 1 / sums[1];
  const double mean = problem.eta * sums[0] * per;
  const double floor = floor_of(largest, problem.smallest_normal);
  return {mean < floor ? floor : mean, per, mean < floor ? 1.0 : 0.0};
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    forward_kernel(Problem problem, GradientStrips strips,
                   const S* image,             // (N, C, H, W)
                   const Arithmetic<S>* mask,  // (N, 1, H, W) or null
                   Reduction reduction,
                   Arithmetic<S>* scale) {  // (N)
  measure_tiles(problem, strips, image, mask, reduction,
                [&](int64_t n, const double* sums, double largest) {
                  const Measure result = measured(problem, sums, largest);
                  store(scale + n, static_cast<Arithmetic<S>>(result.scale));
                });
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    measure_kernel(Problem problem, GradientStrips strips,
                   const S* image,             // (N, C, H, W)
                   const Arithmetic<S>* mask,  // (N, 1, H, W) or null
                   Reduction reduction,
                   Measure* measures) {  // (N)
  measure_tiles(problem, strips, image, mask, reduction,
                [&](int64_t n, const double* sums, double largest) {
                  store_raw(measures + n, measured(problem, sums, largest));
                });
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResidentOf<S>)
    backward_kernel(Problem problem, AdjointStrips strips,
                    const Arithmetic<S>* gradient,  // (N)
                    const S* image,                 // (N, C, H, W)
                    const Arithmetic<S>* mask,      // (N, 1, H, W) or null
                    const Measure* measures,        // (N)
                    S* grad_image) {                // (N, C, H, W)
  using T = Arithmetic<S>;
  using Row = typename RowWindow<S>::Row;
  const int32_t H = strips.height, W = strips.width;
  for (int64_t index = blockIdx.x; index < strips.count(); index += gridDim.x) {
    const auto place = strips.place(index);
    const int64_t n = place.plane / problem.channels, plane = place.plane * H * W;
    const Measure measure = load_raw(measures + n);
    const T factor = static_cast<T>(load(gradient + n) * problem.eta * measure.per_voxel);
    const bool floored = measure.floored != 0;
    RowWindow<S> rows({image + plane, H, W, place.x}, {mask, n, H, W, place.x}, place.y - 1);
    S* own = grad_image + plane + place.x;
    Adjoint<T> adjoint;
    march(
        place.y - 1, place.end + 1, H - 1,
        [&](int32_t y, bool inner) { return rows.read(y, inner); },
        [&](int32_t y, const Row& next, bool inner) {
          T g[2], p[2];
          rows.move_down(next, g);
          const T length = magnitude<2>(g), weight = factor * rows.weight;
          for (int k = 0; k < 2; ++k) {
            p[k] = weight * counted(direction(g[k], length), rows.weight);
          }
          const T sum = adjoint.advance(y, place.x, H, W, inner, p);
          if (!place.owns || y <= place.y || (!inner && y > place.end)) return;
          store(row_of(own, y - 1, W), floored || rows.hides.above() ? T(0) : sum);
        });
  }
}

Reduction reduction_of(const Problem& problem, double* workspace, void* stream) {
  return make_reduction(workspace, problem.samples, 3,
                        problem.channels * strips_of<GradientStrips>(problem).per_plane, stream);
}

}  // namespace

int64_t forward_doubles(const Problem& problem) {
  return reduction_doubles(problem.samples, 3,
                           problem.channels * strips_of<GradientStrips>(problem).per_plane);
}

template <typename S>
void launch_forward(const Problem& problem, const S* image, const Arithmetic<S>* mask,
                    double* workspace, Arithmetic<S>* scale, void* stream) {
  const auto strips = strips_of<GradientStrips>(problem);
  const Reduction reduction = reduction_of(problem, workspace, stream);
  DIFFREG_LAUNCH(forward_kernel<S>, strips.count(), block_shape(), stream, problem, strips, image,
                 mask, reduction, scale);
}

int64_t backward_doubles(const Problem& problem) {
  return problem.samples * (sizeof(Measure) / sizeof(double)) + forward_doubles(problem);
}

template <typename S>
void launch_backward(const Problem& problem, const Arithmetic<S>* gradient, const S* image,
                     const Arithmetic<S>* mask, double* workspace, S* grad_image, void* stream) {
  const auto strips = strips_of<GradientStrips>(problem);
  const auto adjoint = strips_of<AdjointStrips>(problem);
  Measure* measures = reinterpret_cast<Measure*>(workspace);
  double* partials = reinterpret_cast<double*>(measures + problem.samples);
  const Reduction reduction = reduction_of(problem, partials, stream);
  DIFFREG_LAUNCH(measure_kernel<S>, strips.count(), block_shape(), stream, problem, strips, image,
                 mask, reduction, measures);
  DIFFREG_LAUNCH(backward_kernel<S>, adjoint.count(), block_shape(), stream, problem, adjoint,
                 gradient, image, mask, measures, grad_image);
}

#define DIFFREG_INSTANCES(S)                                                            \
  template void launch_forward(const Problem&, const S*, const Arithmetic<S>*, double*, \
                               Arithmetic<S>*, void*);                                  \
  template void launch_backward(const Problem&, const Arithmetic<S>*, const S*,         \
                                const Arithmetic<S>*, double*, S*, void*);
DIFFREG_INSTANCES(float)
DIFFREG_INSTANCES(double)
DIFFREG_INSTANCES(Half)
DIFFREG_INSTANCES(BFloat16)

}  // namespace diffreg::gradient_scale
