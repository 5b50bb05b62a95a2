// CUDA driver of diffreg::registration_objective and diffreg::registration_objective_backward,
// composed of the operators' kernels: the warped image and the gradient to it are held once,
// everything else is added to the displacement's gradient. Nothing is read back.
#include "objective_parts.h"

namespace diffreg::registration_objective {
namespace {

// Calls run(parts, T{}).
template <typename Run>
void with_parts(const Device& device, const Inputs& inputs, const Run& run) {
  dispatch_case("displacement", inputs.displacement,
                [&]<int D, typename S>() { run(Parts<D, S>(device, inputs), Arithmetic<S>{}); });
}

// What the terms are where there is no voxel or no channel: correlation's alone is not 0.
void fill_empty(const Inputs& inputs, Tensor* terms) {
  for (int k = 0; k < 5; ++k) torch::stable::zero_(terms[k]);
  torch::stable::fill_(terms[1], inputs.mixture[kNcc]);
  torch::stable::fill_(terms[0], inputs.weights[0] * inputs.mixture[kNcc]);
}

// All in the type of the arithmetic: the gradient is yet to be multiplied.
Outputs run_forward(const Arguments& arguments, bool need_gradient, bool need_warped) {
  const Device device(arguments.displacement);
  const Inputs in(device, arguments);
  const Tensor& u = in.displacement;
  const auto dtype = arithmetic_of(u.scalar_type());
  Tensor terms[5];
  for (Tensor& term : terms) term = new_scalars(u);
  const std::vector<int64_t> nothing{0};
  Tensor gradient = torch::stable::new_empty(u, need_gradient ? sizes_of(u) : nothing, dtype);
  Tensor warped =
      torch::stable::new_empty(in.fixed, need_warped ? sizes_of(in.fixed) : nothing, dtype);
  if (u.numel() == 0) {
    fill_empty(in, terms);
    return {terms[0], terms[1], terms[2], terms[3], terms[4], warped, gradient};
  }
  with_parts(device, in, [&](auto parts, auto zero) {
    using T = decltype(zero);
    const int64_t N = in.problem.samples;
    Tensor scratch = torch::stable::new_empty(terms[0], {kMeasures + kParts, N});
    T *values = output<T>(scratch), *upstream = values + kMeasures * N;
    T* to_displacement = need_gradient ? output<T>(gradient) : nullptr;
    const deformation_energy::Energies<T> energies{output<T>(terms[2]), output<T>(terms[3]),
                                                   output<T>(terms[4])};
    if (need_gradient) {
      launch_upstream<T>(in.problem, nullptr, upstream, device.stream());
      parts.energies_and_gradient(upstream, energies, to_displacement);
    } else {
      parts.energies(energies);
    }
    const bool measured = in.fixed.numel() > 0;
    if (measured) {
      parts.warp_image();
      const bool weighed = need_gradient && in.problem.weights.similarity != 0;
      parts.measure(values, weighed ? upstream : nullptr, weighed ? to_displacement : nullptr,
                    false);
      if (need_warped) warped = parts.warped();
    }
    launch_terms(in.problem, measured ? values : nullptr, energies.diffusion, energies.bending,
                 energies.determinant, output<T>(terms[1]), output<T>(terms[0]), device.stream());
  });
  return {terms[0], terms[1], terms[2], terms[3], terms[4], warped, gradient};
}

Tensor run_backward(const UpstreamTensors& gradients, const Arguments& arguments) {
  const Device device(arguments.displacement);
  const Inputs in(device, arguments);
  const Tensor& u = in.displacement;
  const auto dtype = u.scalar_type();
  const auto given = [&](const std::optional<Tensor>& gradient) {
    return checked(device, "an upstream gradient", gradient, {u.size(0)}, arithmetic_of(dtype));
  };
  const auto total = given(gradients.total), similarity = given(gradients.similarity),
             diffusion = given(gradients.diffusion), bending = given(gradients.bending),
             determinant = given(gradients.determinant);
  Tensor gradient = torch::stable::new_empty(u, u.sizes(), arithmetic_of(dtype));
  if (u.numel() == 0) return torch::stable::to(gradient, dtype);
  with_parts(device, in, [&](auto parts, auto zero) {
    using T = decltype(zero);
    const int64_t N = in.problem.samples;
    Tensor scratch = torch::stable::new_empty(gradient, {kParts + 3, N});
    T *upstream = output<T>(scratch), *unused = upstream + kParts * N;
    const Upstream<T> pointers{data_or_null<T>(total), data_or_null<T>(similarity),
                               data_or_null<T>(diffusion), data_or_null<T>(bending),
                               data_or_null<T>(determinant)};
    launch_upstream(in.problem, &pointers, upstream, device.stream());
    parts.energies_and_gradient(upstream, {unused, unused + N, unused + 2 * N},
                                output<T>(gradient));
    const bool weighed = similarity || (total && in.problem.weights.similarity != 0);
    if (!weighed || in.fixed.numel() == 0) return;
    parts.warp_image();
    parts.measure(nullptr, upstream, output<T>(gradient), true);
  });
  return torch::stable::to(gradient, dtype);  // rounded once
}

void scale(const Tensor& tensor, const Tensor& factor) {
  const Device device(tensor);
  check_scale(tensor, factor);
  device.check("tensor", tensor);
  device.check("factor", factor);
  if (tensor.numel() == 0) return;
  dispatch_floating("tensor", tensor, [&](auto zero) {
    using T = decltype(zero);
    launch_scale(tensor.size(0), tensor.numel() / tensor.size(0), data<T>(factor), factor.stride(0),
                 static_cast<T*>(tensor.mutable_data_ptr()), device.stream());
  });
}

}  // namespace
}  // namespace diffreg::registration_objective

DIFFREG_CUDA_LIBRARY(library) {
  using namespace diffreg::registration_objective;
  library.impl("registration_objective", TORCH_BOX(&forward<&run_forward>));
  library.impl("registration_objective_backward", TORCH_BOX(&backward<&run_backward>));
  library.impl("registration_objective_scale", TORCH_BOX(&scale));
}
