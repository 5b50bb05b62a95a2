// CUDA driver of diffreg::deformation_energy and diffreg::deformation_energy_backward.
#include "deformation_energy_cuda.h"

#include <algorithm>
#include <utility>

#include "../common/cuda_driver.h"

namespace diffreg::deformation_energy {
namespace {

using namespace diffreg::cuda;

// The options, checked.
struct Options {
  std::vector<double> spacing;
  PenaltyKind penalty;
  double threshold;

  Options(const Device& device, const Tensor& displacement, std::vector<double> lengths,
          const std::string& name, double limit)
      : spacing(std::move(lengths)), penalty(parse("penalty", name, kPenalties)), threshold(limit) {
    check_displacement(device, displacement);
    check_spacing(spacing, dimensions_of(displacement));
  }
};

// Calls run(problem, S{}), with D and the storage type of a field.
template <typename Run>
void dispatch(const Tensor& displacement, const Options& options, const Run& run) {
  dispatch_dimensions(displacement, [&](auto dimensions) {
    constexpr int D = decltype(dimensions)::value;
    const int64_t* size = displacement.sizes().data() + 2;
    Problem<D> problem{displacement.size(0),
                       {},
                       Coefficients<D>(size, options.spacing.data()),
                       options.penalty,
                       options.threshold};
    std::copy_n(size, D, problem.size);
    dispatch_storage("displacement", displacement, [&](auto zero) { run(problem, zero); });
  });
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& displacement, std::vector<double> spacing,
                                           Text penalty, double threshold) {
  const Device device(displacement);
  const Options options(device, displacement, std::move(spacing), penalty, threshold);
  const Tensor u = torch::stable::contiguous(displacement);
  Tensor diffusion = new_scalars(u), bending = new_scalars(u), determinant = new_scalars(u);
  if (u.numel() == 0) {
    for (Tensor* energy : {&diffusion, &bending, &determinant}) torch::stable::zero_(*energy);
    return {diffusion, bending, determinant};
  }
  dispatch(u, options, [&](const auto& problem, auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Tensor scratch = workspace(u, workspace_doubles(problem));
    const Energies<T> found{output<T>(diffusion), output<T>(bending), output<T>(determinant)};
    launch_forward(problem, data<S>(u), output<double>(scratch), found, device.stream());
  });
  return {diffusion, bending, determinant};
}

Tensor backward(std::optional<Tensor> grad_diffusion, std::optional<Tensor> grad_bending,
                std::optional<Tensor> grad_determinant, const Tensor& displacement,
                std::vector<double> spacing, Text penalty, double threshold) {
  const Device device(displacement);
  const Options options(device, displacement, std::move(spacing), penalty, threshold);
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
