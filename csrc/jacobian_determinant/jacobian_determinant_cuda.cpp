// CUDA driver of diffreg::jacobian_determinant and diffreg::jacobian_determinant_backward.
#include "jacobian_determinant_cuda.h"

#include "../common/cuda_driver.h"
#include "arguments.h"

namespace diffreg::jacobian_determinant {
namespace {

using namespace diffreg::cuda;

// Calls run(problem, S{}), with D and the storage type of a field.
template <typename Run>
void dispatch(const Tensor& displacement, Reduce reduce, const Run& run) {
  dispatch_case("displacement", displacement, [&]<int D, typename S>() {
    run(Problem<D>(displacement.size(0), displacement.sizes().data() + 2, reduce), S{});
  });
}

Tensor forward(const Tensor& displacement, Text name) {
  const Device device(displacement);
  check_displacement(device, displacement);
  const Reduce reduce = parse("reduce", name, kReduces);
  const Tensor u = torch::stable::contiguous(displacement);
  Tensor determinant =
      torch::stable::new_empty(u, output_shape(u, reduce), arithmetic_of(u.scalar_type()));
  if (determinant.numel() == 0) return determinant;
  dispatch(u, reduce, [&](const auto& problem, auto zero) {
    using S = decltype(zero);
    launch_forward(problem, data<S>(u), output<Arithmetic<S>>(determinant), device.stream());
  });
  return determinant;
}

Tensor backward(const Tensor& gradient, const Tensor& displacement, Text name) {
  const Device device(displacement);
  check_displacement(device, displacement);
  const Reduce reduce = parse("reduce", name, kReduces);
  STD_TORCH_CHECK(reduce != Reduce::bound, "reduce 'bound' has no gradient");
  const Tensor upstream = checked(device, "gradient", gradient, output_shape(displacement, reduce),
                                  arithmetic_of(displacement.scalar_type()));
  const Tensor u = torch::stable::contiguous(displacement);
  Tensor grad_displacement = torch::stable::new_empty(u, u.sizes());
  if (upstream.numel() == 0) return torch::stable::zero_(grad_displacement);
  dispatch(u, reduce, [&](const auto& problem, auto zero) {
    using S = decltype(zero);
    launch_backward(problem, data<Arithmetic<S>>(upstream), data<S>(u),
                    output<S>(grad_displacement), device.stream());
  });
  return grad_displacement;
}

}  // namespace
}  // namespace diffreg::jacobian_determinant

DIFFREG_CUDA_LIBRARY(library) {
  library.impl("jacobian_determinant", TORCH_BOX(&diffreg::jacobian_determinant::forward));
  library.impl("jacobian_determinant_backward",
               TORCH_BOX(&diffreg::jacobian_determinant::backward));
}
