// CUDA driver of diffreg::parallel_level_sets and diffreg::parallel_level_sets_backward.
#include "parallel_level_sets_cuda.h"

#include "../common/cuda_driver.h"

namespace diffreg::parallel_level_sets {
namespace {

using namespace diffreg::cuda;

// The inputs, checked and contiguous.
struct Inputs {
  Tensor warped, fixed;
  Scalars eps_warped, eps_fixed;
  std::optional<Tensor> mask;
  Variant variant;

  Inputs(const Device& device, const Tensor& warped_image, const Tensor& fixed_image,
         const Tensor& eps_w, const Tensor& eps_r, const std::string& name,
         const std::optional<Tensor>& weights) {
    check_image(device, "warped", warped_image);
    const auto dtype = warped_image.scalar_type();
    warped = torch::stable::contiguous(warped_image);
    fixed = checked(device, "fixed", fixed_image, sizes_of(warped_image), dtype);
    eps_warped = {device, "eps_warped", eps_w, warped_image};
    eps_fixed = {device, "eps_fixed", eps_r, warped_image};
    mask = checked_mask(device, weights, warped_image);
    variant = parse("variant", name, kVariants);
  }

  template <typename S>
  Images<S> images() const {
    using T = Arithmetic<S>;
    return {data<S>(warped), data<S>(fixed), eps_warped.as<T>(), eps_fixed.as<T>(),
            data_or_null<T>(mask)};
  }
  // Calls run(problem, S{}), with D and the storage type.
  template <typename Run>
  void dispatch(const Run& run) const {
    dispatch_case("warped", warped, [&]<int D, typename S>() {
      run(Problem<D>(warped.size(0), warped.size(1), warped.sizes().data() + 2, variant), S{});
    });
  }
};

Tensor forward(const Tensor& warped, const Tensor& fixed, const Tensor& eps_warped,
               const Tensor& eps_fixed, Text variant, std::optional<Tensor> mask) {
  const Device device(warped);
  const Inputs in(device, warped, fixed, eps_warped, eps_fixed, variant, mask);
  Tensor value = new_scalars(in.warped);
  if (warped.numel() == 0) return torch::stable::zero_(value);
  in.dispatch([&](const auto& problem, auto zero) {
    using S = decltype(zero);
    Tensor scratch = workspace(in.warped, forward_doubles<S>(problem));
    launch_forward(problem, in.images<S>(), output<double>(scratch), output<Arithmetic<S>>(value),
                   device.stream());
  });
  return value;
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& warped,
                                    const Tensor& fixed, const Tensor& eps_warped,
                                    const Tensor& eps_fixed, Text variant,
                                    std::optional<Tensor> mask, bool need_warped, bool need_fixed) {
  const Device device(warped);
  const Inputs in(device, warped, fixed, eps_warped, eps_fixed, variant, mask);
  const Tensor upstream = checked_scalars(device, "gradient", gradient, warped);
  Tensor grad_warped = gradient_like(in.warped, need_warped);
  Tensor grad_fixed = gradient_like(in.fixed, need_fixed);
  if (warped.numel() == 0) return {grad_warped, grad_fixed};
  in.dispatch([&](const auto& problem, auto zero) {
    using S = decltype(zero);
    Tensor scratch = workspace(in.warped, backward_doubles(problem, mask.has_value()));
    launch_backward(problem, in.images<S>(), data<Arithmetic<S>>(upstream), output<double>(scratch),
                    need_warped ? output<S>(grad_warped) : nullptr,
                    need_fixed ? output<S>(grad_fixed) : nullptr, false, device.stream());
  });
  return {grad_warped, grad_fixed};
}

}  // namespace
}  // namespace diffreg::parallel_level_sets

DIFFREG_CUDA_LIBRARY(library) {
  library.impl("parallel_level_sets", TORCH_BOX(&diffreg::parallel_level_sets::forward));
  library.impl("parallel_level_sets_backward", TORCH_BOX(&diffreg::parallel_level_sets::backward));
}
