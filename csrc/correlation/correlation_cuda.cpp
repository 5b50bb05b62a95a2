// CUDA driver of diffreg::correlation and diffreg::correlation_backward.
#include "correlation_cuda.h"

#include <limits>

#include "../common/cuda_driver.h"

namespace diffreg::correlation {
namespace {

using namespace diffreg::cuda;

double epsilon_of(ScalarType dtype) {
  return arithmetic_of(dtype) == ScalarType::Double ? std::numeric_limits<double>::epsilon()
                                                    : std::numeric_limits<float>::epsilon();
}

// The inputs, checked and contiguous.
struct Inputs {
  Tensor warped, fixed;
  std::optional<Tensor> mask;
  Problem problem;

  Inputs(const Device& device, const Tensor& warped_image, const Tensor& fixed_image,
         const std::optional<Tensor>& weights) {
    check_image(device, "warped", warped_image);
    const auto dtype = warped_image.scalar_type();
    warped = torch::stable::contiguous(warped_image);
    fixed = checked(device, "fixed", fixed_image, sizes_of(warped_image), dtype);
    mask = checked_mask(device, weights, warped_image);
    problem = {warped.size(0), warped.size(1), rows_of(warped) * width_of(warped),
               epsilon_of(dtype)};
  }

  template <typename S>
  Images<S> images() const {
    return {data<S>(warped), data<S>(fixed), data_or_null<Arithmetic<S>>(mask)};
  }
};

std::tuple<Tensor, Tensor> forward(const Tensor& warped, const Tensor& fixed,
                                   std::optional<Tensor> mask) {
  const Device device(warped);
  const Inputs in(device, warped, fixed, mask);
  const int64_t N = in.problem.samples;
  Tensor value = new_scalars(in.warped);
  Tensor moments = torch::stable::new_empty(in.warped, {N, kMoments}, ScalarType::Double);
  if (warped.numel() == 0) {
    return {torch::stable::fill_(value, 1), torch::stable::zero_(moments)};
  }
  dispatch_storage("warped", in.warped, [&](auto zero) {
    using S = decltype(zero);
    Tensor scratch = workspace(in.warped, forward_doubles<S>(in.problem));
    launch_forward(in.problem, in.images<S>(), output<double>(scratch),
                   output<Arithmetic<S>>(value), output<double>(moments), device.stream());
  });
  return {value, moments};
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& moments,
                                    const Tensor& warped, const Tensor& fixed,
                                    std::optional<Tensor> mask, bool need_warped, bool need_fixed) {
  const Device device(warped);
  const Inputs in(device, warped, fixed, mask);
  const int64_t N = in.problem.samples;
  const Tensor upstream = checked_scalars(device, "gradient", gradient, warped);
  const Tensor saved = checked(device, "moments", moments, {N, kMoments}, ScalarType::Double);
  Tensor grad_warped = gradient_like(in.warped, need_warped);
  Tensor grad_fixed = gradient_like(in.fixed, need_fixed);
  if (warped.numel() == 0) return {grad_warped, grad_fixed};
  dispatch_storage("warped", in.warped, [&](auto zero) {
    using S = decltype(zero);
    launch_backward(in.problem, in.images<S>(), data<Arithmetic<S>>(upstream), data<double>(saved),
                    need_warped ? output<S>(grad_warped) : nullptr,
                    need_fixed ? output<S>(grad_fixed) : nullptr, false, device.stream());
  });
  return {grad_warped, grad_fixed};
}

}  // namespace
}  // namespace diffreg::correlation

DIFFREG_CUDA_LIBRARY(library) {
  library.impl("correlation", TORCH_BOX(&diffreg::correlation::forward));
  library.impl("correlation_backward", TORCH_BOX(&diffreg::correlation::backward));
}
