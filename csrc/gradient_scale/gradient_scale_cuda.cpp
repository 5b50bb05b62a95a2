// CUDA driver of diffreg::gradient_scale and diffreg::gradient_scale_backward.
#include "gradient_scale_cuda.h"

#include <limits>

#include "../common/cuda_driver.h"

namespace diffreg::gradient_scale {
namespace {

using namespace diffreg::cuda;

double smallest_normal(ScalarType dtype) {
  return arithmetic_of(dtype) == ScalarType::Double ? std::numeric_limits<double>::min()
                                                    : std::numeric_limits<float>::min();
}

// Calls run(problem, S{}), with D and the storage type of an image.
template <typename Run>
void dispatch(const Tensor& image, double eta, const Run& run) {
  dispatch_case("image", image, [&]<int D, typename S>() {
    run(Problem<D>(image.size(0), image.size(1), image.sizes().data() + 2, eta,
                   smallest_normal(image.scalar_type())),
        S{});
  });
}

Tensor forward(const Tensor& image, double eta, std::optional<Tensor> mask) {
  const Device device(image);
  check_image(device, "image", image);
  const Tensor input = torch::stable::contiguous(image);
  const auto weights = checked_mask(device, mask, image);
  Tensor scale = new_scalars(input);
  if (input.numel() == 0) return torch::stable::fill_(scale, smallest_normal(image.scalar_type()));
  dispatch(input, eta, [&](const auto& problem, auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Tensor scratch = workspace(input, forward_doubles<S>(problem));
    launch_forward(problem, data<S>(input), data_or_null<T>(weights), output<double>(scratch),
                   output<T>(scale), device.stream());
  });
  return scale;
}

Tensor backward(const Tensor& gradient, const Tensor& image, double eta,
                std::optional<Tensor> mask) {
  const Device device(image);
  check_image(device, "image", image);
  const Tensor upstream = checked_scalars(device, "gradient", gradient, image);
  const Tensor input = torch::stable::contiguous(image);
  const auto weights = checked_mask(device, mask, image);
  Tensor grad_image = torch::stable::new_empty(input, input.sizes());
  if (input.numel() == 0) return grad_image;
  dispatch(input, eta, [&](const auto& problem, auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Tensor scratch = workspace(input, backward_doubles<S>(problem, weights.has_value()));
    launch_backward(problem, data<T>(upstream), data<S>(input), data_or_null<T>(weights),
                    output<double>(scratch), output<S>(grad_image), device.stream());
  });
  return grad_image;
}

}  // namespace
}  // namespace diffreg::gradient_scale

DIFFREG_CUDA_LIBRARY(library) {
  library.impl("gradient_scale", TORCH_BOX(&diffreg::gradient_scale::forward));
  library.impl("gradient_scale_backward", TORCH_BOX(&diffreg::gradient_scale::backward));
}
