// CUDA driver of diffreg::local_correlation and diffreg::local_correlation_backward.
#include "local_correlation_cuda.h"

#include <algorithm>

#include "../common/cuda_driver.h"

namespace diffreg::local_correlation {
namespace {

using namespace diffreg::cuda;

// The inputs, checked and contiguous.
struct Inputs {
  Tensor warped, fixed;
  std::optional<Tensor> mask;
  Problem problem;

  Inputs(const Device& device, const Tensor& warped_image, const Tensor& fixed_image,
         int64_t window, const std::optional<Tensor>& weights) {
    check_image(device, "warped", warped_image);
    check_window(window);
    const auto dtype = warped_image.scalar_type();
    warped = torch::stable::contiguous(warped_image);
    fixed = checked(device, "fixed", fixed_image, sizes_of(warped_image), dtype);
    mask = checked_mask(device, weights, warped_image);
    problem = {warped.size(0), warped.size(1), warped.sizes().data() + 2,
               static_cast<int>(dimensions_of(warped)), window};
  }

  template <typename S>
  Images<S> images() const {
    return {data<S>(warped), data<S>(fixed), data_or_null<Arithmetic<S>>(mask)};
  }
};

// Launches what fills the results, the gradient to their value being that or 1.
template <typename S>
void compute(const Device& device, const Inputs& in, const Arithmetic<S>* gradient,
             const Results<S>& results) {
  if (!results.any()) return;
  const Images<S> images = in.images<S>();
  Tensor scratch = workspace(in.warped, workspace_doubles(in.problem, images, results));
  dispatch_dimensions(in.warped, [&](auto dimensions) {
    launch<decltype(dimensions)::value>(in.problem, images, gradient, output<double>(scratch),
                                        results, device.stream());
  });
}

Tensor forward(const Tensor& warped, const Tensor& fixed, int64_t window,
               std::optional<Tensor> mask) {
  const Device device(warped);
  const Inputs in(device, warped, fixed, window, mask);
  Tensor value = new_scalars(in.warped);
  if (warped.numel() == 0) return torch::stable::zero_(value);
  dispatch_storage("warped", in.warped, [&](auto zero) {
    using S = decltype(zero);
    compute<S>(device, in, nullptr, {output<Arithmetic<S>>(value), nullptr, nullptr, false});
  });
  return value;
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& warped,
                                    const Tensor& fixed, int64_t window, std::optional<Tensor> mask,
                                    bool need_warped, bool need_fixed) {
  const Device device(warped);
  const Inputs in(device, warped, fixed, window, mask);
  const Tensor upstream = checked_scalars(device, "gradient", gradient, warped);
  Tensor grad_warped = gradient_like(in.warped, need_warped);
  Tensor grad_fixed = gradient_like(in.fixed, need_fixed);
  if (warped.numel() == 0) return {grad_warped, grad_fixed};
  dispatch_storage("warped", in.warped, [&](auto zero) {
    using S = decltype(zero);
    compute<S>(device, in, data<Arithmetic<S>>(upstream),
               {nullptr, need_warped ? output<S>(grad_warped) : nullptr,
                need_fixed ? output<S>(grad_fixed) : nullptr, false});
  });
  return {grad_warped, grad_fixed};
}

}  // namespace
}  // namespace diffreg::local_correlation

DIFFREG_CUDA_LIBRARY(library) {
  library.impl("local_correlation", TORCH_BOX(&diffreg::local_correlation::forward));
  library.impl("local_correlation_backward", TORCH_BOX(&diffreg::local_correlation::backward));
}
