// CPU driver of diffreg::local_correlation and diffreg::local_correlation_backward.
#include "local_correlation_cpu.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "window_rows.h"

namespace diffreg::local_correlation {
namespace {

void check(const Tensor& warped, const Tensor& fixed, int64_t window) {
  check_image("warped", warped);
  check_shape("fixed", fixed, sizes_of(warped));
  check_dtype("fixed", fixed, warped.scalar_type());
  check_window(window);
}

// Calls run<D, T>() for those of the images.
template <typename Run>
void dispatch(const Tensor& image, const Run& run) {
  dispatch_dimensions(image, [&](auto dimensions) {
    dispatch_floating("warped", image, [&](auto zero) {
      run.template operator()<decltype(dimensions)::value, decltype(zero)>();
    });
  });
}

Tensor forward(const Tensor& warped, const Tensor& fixed, int64_t window,
               std::optional<Tensor> mask) {
  check(warped, fixed, window);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  Tensor value = torch::stable::new_empty(w, {w.size(0)});
  const auto found = measure({w, r, window, mask}, {}, nullptr);
  dispatch_floating("warped", w, [&](auto zero) {
    std::copy(found.begin(), found.end(), value.mutable_data_ptr<decltype(zero)>());
  });
  return value;
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& warped,
                                    const Tensor& fixed, int64_t window, std::optional<Tensor> mask,
                                    bool need_warped, bool need_fixed) {
  check(warped, fixed, window);
  check_shape("gradient", gradient, {warped.size(0)});
  check_dtype("gradient", gradient, warped.scalar_type());
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const Tensor upstream = torch::stable::contiguous(gradient);
  std::vector<double> factors(w.size(0));
  dispatch_floating("gradient", upstream, [&](auto zero) {
    std::copy_n(upstream.const_data_ptr<decltype(zero)>(), factors.size(), factors.begin());
  });
  const auto output = [&](bool need) {
    return need ? torch::stable::new_zeros(w, w.sizes()) : torch::stable::new_empty(w, {0});
  };
  Tensor grad_warped = output(need_warped), grad_fixed = output(need_fixed);
  if (need_warped) measure({w, r, window, mask}, factors, &grad_warped);
  if (need_fixed) measure({r, w, window, mask}, factors, &grad_fixed);
  return {grad_warped, grad_fixed};
}

}  // namespace

std::vector<double> measure(const Inputs& inputs, const std::vector<double>& factors,
                            Tensor* gradient) {
  std::vector<double> values(inputs.own.size(0), 0.0);
  if (inputs.own.numel() == 0) return values;
  dispatch(inputs.own, [&]<int D, typename T>() {
    const Mask<T> weights(inputs.mask, inputs.own);
    const Tensor own = weights.read(inputs.own), other = weights.read(inputs.other);
    const Grid<D> grid(own);
    const int64_t N = own.size(0), C = own.size(1), radius = radius_of(inputs.window, grid);
    const WindowStrips<D> strips(grid, radius);
    StripSums<1> sums(N, strips.parts);
    T* data = gradient ? gradient->mutable_data_ptr<T>() : nullptr;
    const auto channel_of = [&](const Tensor& image, int64_t c) {
      return Channel<D, T>{image.const_data_ptr<T>() + c * grid.voxels, grid};
    };
    const auto run_strip = [&](int64_t n, int64_t strip, int64_t, int64_t) {
      const auto weights_of = [&](int64_t row) { return weights.row(n, row); };
      for (int64_t c = n * C; c < (n + 1) * C; ++c) {
        WindowRows<D, T> rows(channel_of(own, c), channel_of(other, c), radius, strips, strip,
                              data != nullptr);
        *sums.at(n, strip) += data ? rows.add_gradient(factors[n] * weights.per_voxel(n) / C,
                                                       weights_of, data + c * grid.voxels)
                                   : rows.value(weights_of);
      }
    };
    for_each_strip(N, strips.parts, grid.voxels / strips.parts, run_strip, 1);
    if (gradient) weights.leave_out_hidden(inputs.own, own, *gradient);
    for (int64_t n = 0; n < N; ++n) values[n] = sums.total(n, 0) * weights.per_voxel(n) / C;
  });
  return values;
}

}  // namespace diffreg::local_correlation

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("local_correlation", TORCH_BOX(&diffreg::local_correlation::forward));
  library.impl("local_correlation_backward", TORCH_BOX(&diffreg::local_correlation::backward));
}
