// CPU driver of diffreg::parallel_level_sets and diffreg::parallel_level_sets_backward.
#include "parallel_level_sets_cpu.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "level_set_rows.h"

namespace diffreg::parallel_level_sets {
namespace {

// Calls run(rows of a channel, n, c, strip, first row, end row) for the strips of every channel, in
// parallel; the rows give the gradient to `own`.
template <int D, typename T, typename Run>
void for_channels(const Tensor& own, const Tensor& other, const Inputs& inputs, const Run& run) {
  const Grid<D> grid(own);
  const int64_t C = own.size(1);
  const auto channel_of = [&](const Tensor& image, int64_t c) {
    return Channel<D, T>{image.const_data_ptr<T>() + c * grid.voxels, grid};
  };
  for_each_strip(
      own.size(0), grid.rows, grid.width,
      [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
        const Scales<T> scales(inputs.variant, inputs.eps_own.const_data_ptr<T>()[n],
                               inputs.eps_other.const_data_ptr<T>()[n]);
        for (int64_t c = n * C; c < (n + 1) * C; ++c) {
          const LevelSetRows<D, T> rows(channel_of(own, c), channel_of(other, c), scales);
          run(rows, n, c, strip, first, end);
        }
      },
      grid.strip_rows());
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
  Tensor value = torch::stable::new_empty(w, {w.size(0)});
  const auto found = measure({w, r, eps_w, eps_r, variant, mask}, {}, nullptr);
  dispatch_floating("warped", w, [&](auto zero) {
    std::copy(found.begin(), found.end(), value.mutable_data_ptr<decltype(zero)>());
  });
  return value;
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& warped,
                                    const Tensor& fixed, const Tensor& eps_warped,
                                    const Tensor& eps_fixed, Text variant_name,
                                    std::optional<Tensor> mask, bool need_warped, bool need_fixed) {
  check(warped, fixed, eps_warped, eps_fixed);
  const Variant variant = parse("variant", variant_name, kVariants);
  check_shape("gradient", gradient, {warped.size(0)});
  check_dtype("gradient", gradient, warped.scalar_type());
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const Tensor eps_w = torch::stable::contiguous(eps_warped);
  const Tensor eps_r = torch::stable::contiguous(eps_fixed);
  const Tensor upstream = torch::stable::contiguous(gradient);
  std::vector<double> factors(w.size(0));
  dispatch_floating("gradient", upstream, [&](auto zero) {
    std::copy_n(upstream.const_data_ptr<decltype(zero)>(), factors.size(), factors.begin());
  });
  const auto output = [&](bool need) {
    return need ? torch::stable::new_zeros(w, w.sizes()) : torch::stable::new_empty(w, {0});
  };
  Tensor grad_warped = output(need_warped), grad_fixed = output(need_fixed);
  if (need_warped) measure({w, r, eps_w, eps_r, variant, mask}, factors, &grad_warped);
  if (need_fixed) measure({r, w, eps_r, eps_w, variant, mask}, factors, &grad_fixed);
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
    const int64_t C = own.size(1);
    StripSums<1> sums(own.size(0), strip_count(grid.rows, grid.strip_rows()));
    T* data = gradient ? gradient->mutable_data_ptr<T>() : nullptr;
    const auto run_strip = [&](const auto& rows, int64_t n, int64_t c, int64_t strip, int64_t first,
                               int64_t end) {
      double& sum = *sums.at(n, strip);
      if (!data) {
        for (int64_t row = first; row < end; ++row) sum += rows.value(row, weights.row(n, row));
        return;
      }
      const T factor = static_cast<T>(factors[n] * weights.per_voxel(n) / C);
      GradientAdjoint<D, T> adjoint(grid, first);
      for (int64_t row = first; row < end; ++row) {
        adjoint.add_to(row, data + c * grid.voxels + row * grid.width,
                       [&](int64_t from, T* const* p) {
                         const double part = rows.slopes(from, factor, weights.row(n, from), p);
                         if (from >= first && from < end) sum += part;
                       });
      }
    };
    for_channels<D, T>(own, other, inputs, run_strip);
    if (gradient) weights.leave_out_hidden(inputs.own, own, *gradient);
    for (int64_t n = 0; n < own.size(0); ++n) {
      values[n] = sums.total(n, 0) * weights.per_voxel(n) / C;
    }
  });
  return values;
}

}  // namespace diffreg::parallel_level_sets

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("parallel_level_sets", TORCH_BOX(&diffreg::parallel_level_sets::forward));
  library.impl("parallel_level_sets_backward", TORCH_BOX(&diffreg::parallel_level_sets::backward));
}
