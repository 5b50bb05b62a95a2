// CUDA driver of diffreg::deformation_energy and diffreg::deformation_energy_backward.
#include "deformation_energy_cuda.h"

#include "../common/cuda_driver.h"
#include "arguments.h"

namespace diffreg::deformation_energy {
namespace {

using namespace diffreg::cuda;

// Calls run(problem, S{}), with D and the storage type of a field.
template <typename Run>
void dispatch(const Tensor& displacement, const Options& options, const Run& run) {
  dispatch_case("displacement", displacement, [&]<int D, typename S>() {
    run(Problem<D>(displacement.size(0), displacement.sizes().data() + 2, options.spacing.data(),
                   options.penalty, options.threshold),
        S{});
  });
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& displacement, std::vector<double> spacing,
                                           Text penalty, double threshold) {
  const Device device(displacement);
  check_displacement(device, displacement);
  const Options options = parse_options(displacement, spacing, penalty, threshold);
  const Tensor u = torch::stable::contiguous(displacement);
  Tensor diffusion = new_scalars(u), bending = new_scalars(u), determinant = new_scalars(u);
  if (u.numel() == 0) {
    for (Tensor* energy : {&diffusion, &bending, &determinant}) torch::stable::zero_(*energy);
    return {diffusion, bending, determinant};
  }
  dispatch(u, options, [&](const auto& problem, auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Tensor scratch = workspace(u, forward_doubles(problem));
    const Energies<T> found{output<T>(diffusion), output<T>(bending), output<T>(determinant)};
    launch_forward(problem, data<S>(u), output<double>(scratch), found, device.stream());
  });
  return {diffusion, bending, determinant};
}

Tensor backward(std::optional<Tensor> grad_diffusion, std::optional<Tensor> grad_bending,
                std::optional<Tensor> grad_determinant, const Tensor& displacement,
                std::vector<double> spacing, Text penalty, double threshold) {
  const Device device(displacement);
  check_displacement(device, displacement);
  const Options options = parse_options(displacement, spacing, penalty, threshold);
  const Tensor u = torch::stable::contiguous(displacement);
  const auto checked_upstream = [&](const char* name, const std::optional<Tensor>& gradient) {
    return checked(device, name, gradient, {u.size(0)}, arithmetic_of(u.scalar_type()));
  };
  const auto diffusion = checked_upstream("grad_diffusion", grad_diffusion);
  const auto bending = checked_upstream("grad_bending", grad_bending);
  const auto determinant = checked_upstream("grad_determinant", grad_determinant);
  Tensor gradient = torch::stable::new_empty(u, u.sizes());
  if (u.numel() == 0) return gradient;
  dispatch(u, options, [&](const auto& problem, auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    const Upstream<T> used{data_or_null<T>(diffusion), data_or_null<T>(bending),
                           data_or_null<T>(determinant)};
    launch_backward(problem, used, data<S>(u), output<S>(gradient), device.stream());
  });
  return gradient;
}

}  // namespace
}  // namespace diffreg::deformation_energy

DIFFREG_CUDA_LIBRARY(library) {
  library.impl("deformation_energy", TORCH_BOX(&diffreg::deformation_energy::forward));
  library.impl("deformation_energy_backward", TORCH_BOX(&diffreg::deformation_energy::backward));
}
