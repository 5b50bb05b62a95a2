// CPU driver of diffreg::local_correlation and diffreg::local_correlation_backward.
#include "local_correlation_cpu.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/cpu_driver.h"
#include "window_rows.h"

namespace diffreg::local_correlation {
namespace {

void check(const Tensor& warped, const Tensor& fixed, int64_t window) {
  check_image("warped", warped);
  check_shape("fixed", fixed, sizes_of(warped));
  check_dtype("fixed", fixed, warped.scalar_type());
  check_window(window);
}

Tensor forward(const Tensor& warped, const Tensor& fixed, int64_t window,
               std::optional<Tensor> mask) {
  check(warped, fixed, window);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  return new_scalars("warped", w, measure({w, r, window, mask}, {}, nullptr));
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& warped,
                                    const Tensor& fixed, int64_t window, std::optional<Tensor> mask,
                                    bool need_warped, bool need_fixed) {
  check(warped, fixed, window);
  const auto factors = scalars_of("gradient", gradient, warped);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  Tensor grad_warped = zero_gradient_like(w, need_warped);
  Tensor grad_fixed = zero_gradient_like(r, need_fixed);
  if (need_warped) measure({w, r, window, mask}, factors, &grad_warped);
  if (need_fixed) measure({r, w, window, mask}, factors, &grad_fixed);
  return {grad_warped, grad_fixed};
}

}  // namespace

std::vector<double> measure(const Inputs& inputs, const std::vector<double>& factors,
                            Tensor* gradient) {
  std::vector<double> values(inputs.own.size(0), 0.0);
  if (inputs.own.numel() == 0) return values;
  dispatch_case("warped", inputs.own, [&]<int D, typename T>() {
    const Mask<T> weights(inputs.mask, inputs.own);
    const Tensor own = weights.read(inputs.own), other = weights.read(inputs.other);
    const Grid<D> grid(own);
    const int64_t N = own.size(0), C = own.size(1), radius = radius_of(inputs.window, grid);
    const WindowStrips<D> strips(grid, radius);
    StripSums<1> sums(N, strips.parts);
    T* data = gradient ? gradient->mutable_data_ptr<T>() : nullptr;
    const auto run_strip = [&](int64_t n, int64_t strip, int64_t, int64_t) {
      const auto weights_of = [&](int64_t row) { return weights.row(n, row); };
      for (int64_t c = n * C; c < (n + 1) * C; ++c) {
        WindowRows<D, T> rows({own, grid, c}, {other, grid, c}, radius, strips, strip,
                              data != nullptr);
        *sums.at(n, strip) += data ? rows.add_gradient(weights.mean(n, factors[n]), weights_of,
                                                       data + c * grid.voxels)
                                   : rows.value(weights_of);
      }
    };
    for_each_strip(N, strips.parts, grid.voxels / strips.parts, run_strip, 1);
    if (gradient) weights.leave_out_hidden(inputs.own, own, *gradient);
    for (int64_t n = 0; n < N; ++n) values[n] = weights.mean(n, sums.total(n, 0));
  });
  return values;
}

}  // namespace diffreg::local_correlation

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("local_correlation", TORCH_BOX(&diffreg::local_correlation::forward));
  library.impl("local_correlation_backward", TORCH_BOX(&diffreg::local_correlation::backward));
}
