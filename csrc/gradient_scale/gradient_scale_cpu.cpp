// CPU driver of diffreg::gradient_scale and diffreg::gradient_scale_backward.
#include <torch/csrc/stable/library.h>

#include <limits>

#include "../common/cpu_driver.h"
#include "../common/image_gradient.h"
#include "../common/mask.h"
#include "gradient_scale.h"

namespace diffreg::gradient_scale {
namespace {

// eta * mean and the floor of every sample; the scale is the larger one.
struct Scale {
  double mean, floor;
};

// Sum of the weighted magnitudes over a row.
template <int D, typename T>
double sum_over(const Channel<D, T>& channel, int64_t row, const T* weights) {
  const int64_t width = channel.grid.width;
  const GradientRow<D, T> around(channel, channel.grid, row);
  double total[1] = {0};
  with_weights(weights, [&](const auto& weight) {
    const auto at = [&](int64_t x, int64_t left, int64_t right) DIFFREG_INLINE_LAMBDA {
      T g[D];
      around.at(x, left, right, g);
      return weight(x) * counted(magnitude<D>(g), weight(x));
    };
    for_ends(width, [&](int64_t x, int64_t left, int64_t right) {
      total[0] += double(at(x, left, right));
    });
    sum_row<T>(
        1, width - 1, [&](int64_t x, T* out) DIFFREG_INLINE_LAMBDA { out[0] = at(x, -1, 1); },
        total);
  });
  return total[0];
}

// The largest magnitude of a row's values, NaN left out; in lanes, so that it is vectorised.
template <typename T>
T largest_of(const T* values, int64_t width) {
  T lanes[kLanes] = {};
  const auto take = [&](int64_t x, int64_t lane) {
    const T size = std::abs(values[x]);
    lanes[lane] = size > lanes[lane] ? size : lanes[lane];
  };
  int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) take(x + lane, lane);
  }
  for (int64_t lane = 0; x < width; ++x, ++lane) take(x, lane);
  return *std::max_element(lanes, lanes + kLanes);
}

template <int D, typename T>
std::vector<Scale> measure(const Tensor& image, double eta, const Mask<T>& mask) {
  const int64_t N = image.size(0);
  const Grid<D> grid(image);
  const int64_t strips = strip_count(grid.rows, grid.strip_rows());
  StripSums<1> sums(N, strips);
  std::vector<T> largest(N * strips, T(0));
  const auto run_strip = [&](int64_t n, int64_t c, int64_t strip, int64_t first, int64_t end) {
    const Channel<D, T> channel(image, grid, c);
    T& most = largest[n * strips + strip];
    for (int64_t row = first; row < end; ++row) {
      *sums.at(n, strip) += sum_over(channel, row, mask.row(n, row));
      most = std::max(most, largest_of(channel.row(row), grid.width));
    }
  };
  for_channels(N, image.size(1), grid, run_strip);
  std::vector<Scale> scales(N);
  for (int64_t n = 0; n < N; ++n) {
    const double most = *std::max_element(&largest[n * strips], &largest[n * strips] + strips);
    scales[n] = {mask.mean(n, eta * sums.total(n, 0)),
                 floor_of(most, std::numeric_limits<T>::min())};
  }
  return scales;
}

template <int D, typename T>
void add_gradient(const Tensor& image, double eta, const Mask<T>& weights,
                  const std::vector<double>& upstream,
                  T* gradient) {  // (N, C, *S)
  const auto scales = measure<D, T>(image, eta, weights);
  const Grid<D> grid(image);
  const auto run_strip = [&](int64_t n, int64_t c, int64_t, int64_t first, int64_t end) {
    if (scales[n].mean < scales[n].floor) return;  // the floor is a constant
    const Channel<D, T> channel(image, grid, c);
    const T factor = static_cast<T>(weights.mean(n, upstream[n] * eta));
    GradientAdjoint<D, T> adjoint(grid, first);
    const auto fill = [&](int64_t row, T* const* p) {
      const GradientRow<D, T> around(channel, grid, row);
      T* out[D];
      for (int k = 0; k < D; ++k) out[k] = p[k];
      with_weights(weights.row(n, row), [&](const auto& weight) {
        const auto at = [&](int64_t x, int64_t left, int64_t right) DIFFREG_INLINE_LAMBDA {
          T g[D];
          around.at(x, left, right, g);
          const T slope = factor * weight(x) * inverse_magnitude(squares<D>(g));
          DIFFREG_UNROLL
          for (int k = 0; k < D; ++k) out[k][x] = counted(slope * g[k], weight(x));
        };
        for_ends(grid.width, at);
#pragma GCC ivdep
        for (int64_t x = 1; x < grid.width - 1; ++x) at(x, -1, 1);
      });
    };
    T* rows = gradient + c * grid.voxels;
    for (int64_t row = first; row < end; ++row) adjoint.add_to(row, rows + row * grid.width, fill);
  };
  for_channels(image.size(0), image.size(1), grid, run_strip);
}

Tensor forward(const Tensor& image, double eta, std::optional<Tensor> mask) {
  check_image("image", image);
  const Tensor input = torch::stable::contiguous(image);
  Tensor scale = torch::stable::new_empty(input, {input.size(0)});
  dispatch_case("image", input, [&]<int D, typename T>() {
    T* out = scale.mutable_data_ptr<T>();
    std::fill(out, out + input.size(0), std::numeric_limits<T>::min());
    if (input.numel() == 0) return;
    const Mask<T> weights(mask, input);
    const auto scales = measure<D, T>(weights.read(input), eta, weights);
    for (int64_t n = 0; n < input.size(0); ++n) {
      out[n] = static_cast<T>(scales[n].mean < scales[n].floor ? scales[n].floor : scales[n].mean);
    }
  });
  return scale;
}

Tensor backward(const Tensor& gradient, const Tensor& image, double eta,
                std::optional<Tensor> mask) {
  check_image("image", image);
  const auto upstream = scalars_of("gradient", gradient, image);
  const Tensor input = torch::stable::contiguous(image);
  Tensor grad_image = torch::stable::new_zeros(input, input.sizes());
  if (input.numel() == 0) return grad_image;
  dispatch_case("image", input, [&]<int D, typename T>() {
    const Mask<T> weights(mask, input);
    const Tensor read = weights.read(input);
    add_gradient<D>(read, eta, weights, upstream, grad_image.mutable_data_ptr<T>());
    weights.leave_out_hidden(input, read, grad_image);
  });
  return grad_image;
}

}  // namespace
}  // namespace diffreg::gradient_scale

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("gradient_scale", TORCH_BOX(&diffreg::gradient_scale::forward));
  library.impl("gradient_scale_backward", TORCH_BOX(&diffreg::gradient_scale::backward));
}
