// CUDA driver of diffreg::parallel_level_sets and diffreg::parallel_level_sets_backward.
#include "parallel_level_sets_cuda.h"

#include "../common/cuda_driver.h"

namespace diffreg::parallel_level_sets {
namespace {

using namespace diffreg::cuda;

// The inputs, checked and contiguous.
struct Inputs {
  Tensor warped, fixed, eps_warped, eps_fixed;
  std::optional<Tensor> mask;
  Problem problem;

  Inputs(const Device& device, const Tensor& warped_image, const Tensor& fixed_image,
         const Tensor& eps_w, const Tensor& eps_r, const std::string& variant,
         const std::optional<Tensor>& weights) {
    check_image(device, "warped", warped_image);
    const auto dtype = warped_image.scalar_type();
    const int64_t N = warped_image.size(0);
    warped = torch::stable::contiguous(warped_image);
    fixed = checked(device, "fixed", fixed_image, sizes_of(warped_image), dtype);
    eps_warped = checked_scalars(device, "eps_warped", eps_w, warped_image);
    eps_fixed = checked_scalars(device, "eps_fixed", eps_r, warped_image);
    mask = checked_mask(device, weights, warped_image);
    problem = {N, warped.size(1), warped.size(2), warped.size(3),
               parse("variant", variant, kVariants)};
  }

  template <typename S>
  Images<S> images() const {
    using T = Arithmetic<S>;
    return {data<S>(warped), data<S>(fixed), data<T>(eps_warped), data<T>(eps_fixed),
            data_or_null<T>(mask)};
  }
};

Tensor forward(const Tensor& warped, const Tensor& fixed, const Tensor& eps_warped,
               const Tensor& eps_fixed, std::string variant, std::optional<Tensor> mask) {
  const Device device(warped);
  const Inputs in(device, warped, fixed, eps_warped, eps_fixed, variant, mask);
  Tensor value = new_scalars(in.warped);
  if (warped.numel() == 0) return torch::stable::zero_(value);
  dispatch_storage("warped", in.warped, [&](auto zero) {
    using S = decltype(zero);
    Tensor scratch = workspace(in.warped, forward_doubles(in.problem));
    launch_forward(in.problem, in.images<S>(), output<double>(scratch),
                   output<Arithmetic<S>>(value), device.stream());
  });
  return value;
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& warped,
                                    const Tensor& fixed, const Tensor& eps_warped,
                                    const Tensor& eps_fixed, std::string variant,
                                    std::optional<Tensor> mask, bool need_warped, bool need_fixed) {
  const Device device(warped);
  const Inputs in(device, warped, fixed, eps_warped, eps_fixed, variant, mask);
  const Tensor upstream = checked_scalars(device, "gradient", gradient, warped);
  Tensor grad_warped = gradient_like(in.warped, need_warped);
  Tensor grad_fixed = gradient_like(in.fixed, need_fixed);
  if (warped.numel() == 0) return {grad_warped, grad_fixed};
  dispatch_storage("warped", in.warped, [&](auto zero) {
    using S = decltype(zero);
    Tensor scratch = workspace(in.warped, backward_doubles(in.problem, mask.has_value()));
    launch_backward(in.problem, in.images<S>(), data<Arithmetic<S>>(upstream),
                    output<double>(scratch), need_warped ? output<S>(grad_warped) : nullptr,
                    need_fixed ? output<S>(grad_fixed) : nullptr, device.stream());
  });
  return {grad_warped, grad_fixed};
}

}  // namespace
}  // namespace diffreg::parallel_level_sets

DIFFREG_CUDA_LIBRARY(library) {
  library.impl("parallel_level_sets", TORCH_BOX(&diffreg::parallel_level_sets::forward));
  library.impl("parallel_level_sets_backward", TORCH_BOX(&diffreg::parallel_level_sets::backward));
}
