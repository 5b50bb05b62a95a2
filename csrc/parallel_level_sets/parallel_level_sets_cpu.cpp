// CPU driver of diffreg::parallel_level_sets and diffreg::parallel_level_sets_backward.
#include "parallel_level_sets_cpu.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/cpu_driver.h"
#include "level_set_rows.h"

namespace diffreg::parallel_level_sets {
namespace {

void check(const Tensor& warped, const Tensor& fixed, const Tensor& eps_warped,
           const Tensor& eps_fixed) {
  check_image("warped", warped);
  check_shape("fixed", fixed, sizes_of(warped));
  check_dtype("fixed", fixed, warped.scalar_type());
  check_shape("eps_warped", eps_warped, {warped.size(0)});
  check_dtype("eps_warped", eps_warped, warped.scalar_type());
  check_shape("eps_fixed", eps_fixed, {warped.size(0)});
  check_dtype("eps_fixed", eps_fixed, warped.scalar_type());
}

Tensor forward(const Tensor& warped, const Tensor& fixed, const Tensor& eps_warped,
               const Tensor& eps_fixed, Text variant_name, std::optional<Tensor> mask) {
  check(warped, fixed, eps_warped, eps_fixed);
  const Variant variant = parse("variant", variant_name, kVariants);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const Tensor eps_w = torch::stable::contiguous(eps_warped);
  const Tensor eps_r = torch::stable::contiguous(eps_fixed);
  return new_scalars("warped", w, measure({w, r, eps_w, eps_r, variant, mask}, {}, nullptr));
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& warped,
                                    const Tensor& fixed, const Tensor& eps_warped,
                                    const Tensor& eps_fixed, Text variant_name,
                                    std::optional<Tensor> mask, bool need_warped, bool need_fixed) {
  check(warped, fixed, eps_warped, eps_fixed);
  const Variant variant = parse("variant", variant_name, kVariants);
  const auto factors = scalars_of("gradient", gradient, warped);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const Tensor eps_w = torch::stable::contiguous(eps_warped);
  const Tensor eps_r = torch::stable::contiguous(eps_fixed);
  Tensor grad_warped = zero_gradient_like(w, need_warped);
  Tensor grad_fixed = zero_gradient_like(r, need_fixed);
  if (need_warped) measure({w, r, eps_w, eps_r, variant, mask}, factors, &grad_warped);
  if (need_fixed) measure({r, w, eps_r, eps_w, variant, mask}, factors, &grad_fixed);
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
    StripSums<1> sums(own.size(0), strip_count(grid.rows, grid.strip_rows()));
    T* data = gradient ? gradient->mutable_data_ptr<T>() : nullptr;
    const auto run_strip = [&](int64_t n, int64_t c, int64_t strip, int64_t first, int64_t end) {
      const Scales<T> scales(inputs.variant, inputs.eps_own.const_data_ptr<T>()[n],
                             inputs.eps_other.const_data_ptr<T>()[n]);
      const LevelSetRows<D, T> rows({own, grid, c}, {other, grid, c}, scales);
      double& sum = *sums.at(n, strip);
      if (!data) {
        for (int64_t row = first; row < end; ++row) sum += rows.value(row, weights.row(n, row));
        return;
      }
      const T factor = static_cast<T>(weights.mean(n, factors[n]));
      GradientAdjoint<D, T> adjoint(grid, first);
      for (int64_t row = first; row < end; ++row) {
        adjoint.add_to(row, data + c * grid.voxels + row * grid.width,
                       [&](int64_t from, T* const* p) {
                         const double part = rows.slopes(from, factor, weights.row(n, from), p);
                         if (from >= first && from < end) sum += part;
                       });
      }
    };
    for_channels(own.size(0), own.size(1), grid, run_strip);
    if (gradient) weights.leave_out_hidden(inputs.own, own, *gradient);
    for (int64_t n = 0; n < own.size(0); ++n) values[n] = weights.mean(n, sums.total(n, 0));
  });
  return values;
}

}  // namespace diffreg::parallel_level_sets

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("parallel_level_sets", TORCH_BOX(&diffreg::parallel_level_sets::forward));
  library.impl("parallel_level_sets_backward", TORCH_BOX(&diffreg::parallel_level_sets::backward));
}
