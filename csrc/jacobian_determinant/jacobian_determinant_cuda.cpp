// CUDA driver of diffreg::jacobian_determinant and diffreg::jacobian_determinant_backward.
#include "jacobian_determinant_cuda.h"

#include <algorithm>

#include "../common/cuda_driver.h"

namespace diffreg::jacobian_determinant {
namespace {

using namespace diffreg::cuda;

Problem make_problem(const Device& device, const Tensor& displacement, const std::string& name) {
  check_displacement(device, displacement);
  return {displacement.size(0), displacement.size(2), displacement.size(3),
          parse("reduce", name, kReduces)};
}

std::vector<int64_t> output_shape(const Problem& problem) {
  const int64_t rows = std::max<int64_t>(problem.height - 1, 0);
  const int64_t columns = std::max<int64_t>(problem.width - 1, 0);
  if (problem.reduce == Reduce::none) return {problem.samples, 4, rows, columns};
  return {problem.samples, rows, columns};
}

Tensor forward(const Tensor& displacement, std::string reduce) {
  const Device device(displacement);
  const Problem problem = make_problem(device, displacement, reduce);
  const Tensor u = torch::stable::contiguous(displacement);
  Tensor determinant =
      torch::stable::new_empty(u, output_shape(problem), arithmetic_of(u.scalar_type()));
  if (determinant.numel() == 0) return determinant;
  dispatch_storage("displacement", u, [&](auto zero) {
    using S = decltype(zero);
    launch_forward(problem, data<S>(u), output<Arithmetic<S>>(determinant), device.stream());
  });
  return determinant;
}

Tensor backward(const Tensor& gradient, const Tensor& displacement, std::string reduce) {
  const Device device(displacement);
  const Problem problem = make_problem(device, displacement, reduce);
  const Tensor upstream = checked(device, "gradient", gradient, output_shape(problem),
                                  arithmetic_of(displacement.scalar_type()));
  const Tensor u = torch::stable::contiguous(displacement);
  Tensor grad_displacement = torch::stable::new_empty(u, u.sizes());
  if (upstream.numel() == 0) return torch::stable::zero_(grad_displacement);
  dispatch_storage("displacement", u, [&](auto zero) {
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
