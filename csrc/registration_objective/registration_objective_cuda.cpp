// CUDA driver of diffreg::registration_objective and diffreg::registration_objective_backward.
#include "registration_objective_cuda.h"

#include <limits>

#include "../common/cuda_driver.h"
#include "arguments.h"

namespace diffreg::registration_objective {
namespace {

using namespace diffreg::cuda;

// The operator's tensors, checked and contiguous, and its options.
struct Inputs {
  Tensor moving, fixed, displacement;
  std::optional<Tensor> eps_moving, eps_fixed, mask;
  Problem problem;

  Inputs(const Device& device, const Arguments& arguments)
      : moving(torch::stable::contiguous(arguments.moving)),
        fixed(arguments.fixed),
        displacement(torch::stable::contiguous(arguments.displacement)),
        problem(make_problem(device, arguments)) {
    const auto dtype = moving.scalar_type();
    const int64_t N = moving.size(0);
    check_dtype("displacement", displacement, dtype);
    fixed = checked(device, "fixed", fixed,
                    {N, moving.size(1), displacement.size(2), displacement.size(3)}, dtype);
    const auto scale = [&](const char* name, const std::optional<Tensor>& eps) {
      STD_TORCH_CHECK(eps || !uses_level_sets(arguments.mixture), name,
                      " is needed by the measure");
      return checked(device, name, eps, {N}, arithmetic_of(dtype));
    };
    eps_moving = scale("eps_moving", arguments.eps_moving);
    eps_fixed = scale("eps_fixed", arguments.eps_fixed);
    if (arguments.mask) mask = checked_mask(device, arguments.mask, fixed);
  }

  template <typename S>
  Images<S> images() const {
    using T = Arithmetic<S>;
    return {data<S>(moving),
            data<S>(fixed),
            data<S>(displacement),
            data_or_null<T>(eps_moving),
            data_or_null<T>(eps_fixed),
            data_or_null<T>(mask)};
  }

 private:
  static Problem make_problem(const Device& device, const Arguments& arguments) {
    const Tensor &moving = arguments.moving, &field = arguments.displacement;
    const auto &mixture = arguments.mixture, &weights = arguments.weights;
    check_image(device, "moving", moving);
    check_displacement(device, field);
    warp::check_pair(moving, field);
    check_lengths(arguments);
    STD_TORCH_CHECK(arguments.padding != "reflection", "reflection has no CUDA kernel");
    STD_TORCH_CHECK(mixture[kLncc] == 0, "local_correlation is no part of this kernel");
    const bool wide = arithmetic_of(moving.scalar_type()) == ScalarType::Double;
    const int64_t size[D] = {field.size(2), field.size(3)};
    Problem problem{
        moving.size(0),
        moving.size(1),
        {},
        {},
        parse("padding", arguments.padding, warp::kPaddings),
        {},
        {weights[0], weights[1], weights[2], weights[3]},
        deformation_energy::Coefficients<D>(size, arguments.spacing.data()),
        parse("penalty", arguments.penalty, deformation_energy::kPenalties),
        arguments.threshold,
        wide ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon()};
    for (int k = 0; k < kMeasures; ++k) problem.mixture[k] = mixture[k];
    for (int k = 0; k < D; ++k) {
      problem.from[k] = static_cast<int32_t>(moving.size(2 + k));
      problem.to[k] = static_cast<int32_t>(field.size(2 + k));
    }
    return problem;
  }
};

// All in the type of the arithmetic: the gradient is yet to be multiplied.
Outputs run_forward(const Arguments& arguments, bool need_gradient, bool need_warped) {
  const Device device(arguments.displacement);
  const Inputs in(device, arguments);
  const Tensor& u = in.displacement;
  const auto output_like = [&](const Tensor& like, bool need) {
    const std::vector<int64_t> shape = need ? sizes_of(like) : std::vector<int64_t>{0};
    return torch::stable::new_empty(like, shape, arithmetic_of(like.scalar_type()));
  };
  Tensor terms[5];
  for (Tensor& term : terms) term = new_scalars(u);
  Tensor warped = output_like(in.fixed, need_warped), gradient = output_like(u, need_gradient);
  if (u.numel() == 0) {  // what correlation gives for images without voxels
    for (Tensor& term : terms) torch::stable::zero_(term);
    torch::stable::fill_(terms[1], in.problem.mixture[kNcc]);
    torch::stable::fill_(terms[0], in.problem.weights.similarity * in.problem.mixture[kNcc]);
    return {terms[0], terms[1], terms[2], terms[3], terms[4], warped, gradient};
  }
  dispatch_storage("displacement", u, [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Tensor scratch = workspace(u, workspace_doubles(in.problem));
    const Terms<T> found{output<T>(terms[0]), output<T>(terms[1]), output<T>(terms[2]),
                         output<T>(terms[3]), output<T>(terms[4])};
    T* image = need_warped ? output<T>(warped) : nullptr;
    if (need_gradient) {
      launch_gradient(in.problem, in.images<S>(), Upstream<T>{}, found, output<T>(gradient), image,
                      output<double>(scratch), device.stream());
    } else {
      launch_forward(in.problem, in.images<S>(), found, image, output<double>(scratch),
                     device.stream());
    }
  });
  return {terms[0], terms[1], terms[2], terms[3], terms[4], warped, gradient};
}

Tensor run_backward(const UpstreamTensors& gradients, const Arguments& arguments) {
  const Device device(arguments.displacement);
  const Inputs in(device, arguments);
  const Tensor& u = in.displacement;
  const auto dtype = u.scalar_type();
  const auto upstream = [&](const std::optional<Tensor>& gradient) {
    return checked(device, "an upstream gradient", gradient, {u.size(0)}, arithmetic_of(dtype));
  };
  const auto total = upstream(gradients.total), similarity = upstream(gradients.similarity),
             diffusion = upstream(gradients.diffusion), bending = upstream(gradients.bending),
             determinant = upstream(gradients.determinant);
  Tensor gradient = torch::stable::new_empty(u, u.sizes(), arithmetic_of(dtype));
  if (u.numel() == 0) return torch::stable::to(gradient, dtype);
  dispatch_storage("displacement", u, [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Tensor scratch = workspace(u, workspace_doubles(in.problem));
    const Upstream<T> pointers{data_or_null<T>(total), data_or_null<T>(similarity),
                               data_or_null<T>(diffusion), data_or_null<T>(bending),
                               data_or_null<T>(determinant)};
    launch_gradient(in.problem, in.images<S>(), pointers, Terms<T>{}, output<T>(gradient),
                    static_cast<T*>(nullptr), output<double>(scratch), device.stream());
  });
  return torch::stable::to(gradient, dtype);  // rounded once
}

}  // namespace
}  // namespace diffreg::registration_objective

DIFFREG_CUDA_LIBRARY(library) {
  using namespace diffreg::registration_objective;
  library.impl("registration_objective", TORCH_BOX(&forward<&run_forward>));
  library.impl("registration_objective_backward", TORCH_BOX(&backward<&run_backward>));
}
