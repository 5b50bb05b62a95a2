// CUDA driver of diffreg::registration_objective and diffreg::registration_objective_backward.
#include "registration_objective_cuda.h"

#include <limits>

#include "../common/cuda_driver.h"

namespace diffreg::registration_objective {
namespace {

using namespace diffreg::cuda;
using deformation_energy::Coefficients;
using deformation_energy::PenaltyKind;

PenaltyKind parse_penalty(const std::string& name) {
  if (name == "hyperelastic") return PenaltyKind::hyperelastic;
  if (name == "log2") return PenaltyKind::log2;
  if (name == "hinge") return PenaltyKind::hinge;
  STD_TORCH_CHECK(name == "relu",
                  "penalty must be 'hyperelastic', 'log2', 'hinge' or 'relu', got '", name, "'");
  return PenaltyKind::relu;
}

warp::Padding parse_padding(const std::string& name) {
  STD_TORCH_CHECK(name == "border" || name == "zeros", "padding must be 'border' or 'zeros', got '",
                  name, "'");
  return name == "border" ? warp::Padding::border : warp::Padding::zeros;
}

// The operator's tensors, checked and contiguous, and its options.
struct Inputs {
  Tensor moving, fixed, displacement;
  std::optional<Tensor> eps_moving, eps_fixed, mask;
  Problem problem;

  Inputs(const Device& device, const Tensor& moving_image, const Tensor& fixed_image,
         const Tensor& field, const std::optional<Tensor>& eps_m,
         const std::optional<Tensor>& eps_f, const std::optional<Tensor>& weight,
         const std::vector<double>& mixture, const std::vector<double>& weights,
         const std::string& padding, const std::vector<double>& spacing, const std::string& penalty,
         double threshold)
      : problem(make_problem(mixture, weights, padding, spacing, penalty, threshold, device,
                             moving_image, field)) {
    const auto dtype = moving_image.scalar_type();
    const int64_t N = moving_image.size(0);
    check_dtype("displacement", field, dtype);
    moving = torch::stable::contiguous(moving_image);
    displacement = torch::stable::contiguous(field);
    fixed = checked(device, "fixed", fixed_image,
                    {N, moving_image.size(1), field.size(2), field.size(3)}, dtype);
    const auto scale = [&](const char* name, const std::optional<Tensor>& eps) {
      const auto& m = problem.mixture;
      STD_TORCH_CHECK(eps || (m[kPls] == 0 && m[kSmoothPls] == 0 && m[kNgf] == 0), name,
                      " is needed by the measure");
      return checked(device, name, eps, {N}, arithmetic_of(dtype));
    };
    eps_moving = scale("eps_moving", eps_m);
    eps_fixed = scale("eps_fixed", eps_f);
    if (weight) mask = checked_mask(device, weight, fixed);
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
  static Problem make_problem(const std::vector<double>& mixture,
                              const std::vector<double>& weights, const std::string& padding,
                              const std::vector<double>& spacing, const std::string& penalty,
                              double threshold, const Device& device, const Tensor& moving,
                              const Tensor& field) {
    check_image(device, "moving", moving);
    check_displacement(device, field);
    STD_TORCH_CHECK(moving.size(0) == field.size(0), "moving has ", moving.size(0),
                    " samples, displacement ", field.size(0));
    STD_TORCH_CHECK(spacing.size() == D, "spacing must have ", D, " values, got ", spacing.size());
    STD_TORCH_CHECK(mixture.size() == kMeasures, "mixture must have ", int(kMeasures),
                    " factors, got ", mixture.size());
    STD_TORCH_CHECK(mixture[kLncc] == 0, "local_correlation is no part of this kernel");
    STD_TORCH_CHECK(weights.size() == 4, "weights must have 4 factors, got ", weights.size());
    const bool wide = arithmetic_of(moving.scalar_type()) == ScalarType::Double;
    Problem problem{
        moving.size(0),
        moving.size(1),
        {},
        {},
        parse_padding(padding),
        {},
        {weights[0], weights[1], weights[2], weights[3]},
        Coefficients(field.size(2), field.size(3), spacing.data()),
        parse_penalty(penalty),
        threshold,
        wide ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon()};
    for (int k = 0; k < kMeasures; ++k) problem.mixture[k] = mixture[k];
    for (int k = 0; k < D; ++k) {
      STD_TORCH_CHECK(moving.size(2 + k) < 1 << 30 && field.size(2 + k) < 1 << 30,
                      "an axis must be shorter than 2^30 voxels");
      problem.from[k] = static_cast<int32_t>(moving.size(2 + k));
      problem.to[k] = static_cast<int32_t>(field.size(2 + k));
    }
    const bool nothing_to_read = problem.from[0] == 0 || problem.from[1] == 0;
    STD_TORCH_CHECK(!nothing_to_read || field.numel() == 0,
                    "moving has no voxels: ", shape_of(moving));
    return problem;
  }
};

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// All in the type of the arithmetic: the gradient is yet to be multiplied.
Outputs forward(const Tensor& moving, const Tensor& fixed, const Tensor& displacement,
                std::optional<Tensor> eps_moving, std::optional<Tensor> eps_fixed,
                std::optional<Tensor> mask, std::vector<double> mixture,
                std::vector<double> weights, std::string padding, std::vector<double> spacing,
                std::string penalty, double threshold, bool need_gradient, bool need_warped) {
  const Device device(displacement);
  const Inputs in(device, moving, fixed, displacement, eps_moving, eps_fixed, mask, mixture,
                  weights, padding, spacing, penalty, threshold);
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
    torch::stable::fill_(terms[0], weights[0] * in.problem.mixture[kNcc]);
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

Tensor backward(std::optional<Tensor> grad_total, std::optional<Tensor> grad_similarity,
                std::optional<Tensor> grad_diffusion, std::optional<Tensor> grad_bending,
                std::optional<Tensor> grad_determinant, const Tensor& moving, const Tensor& fixed,
                const Tensor& displacement, std::optional<Tensor> eps_moving,
                std::optional<Tensor> eps_fixed, std::optional<Tensor> mask,
                std::vector<double> mixture, std::vector<double> weights, std::string padding,
                std::vector<double> spacing, std::string penalty, double threshold) {
  const Device device(displacement);
  const Inputs in(device, moving, fixed, displacement, eps_moving, eps_fixed, mask, mixture,
                  weights, padding, spacing, penalty, threshold);
  const Tensor& u = in.displacement;
  const auto dtype = u.scalar_type();
  const auto held = [&](const std::optional<Tensor>& gradient) {
    return checked(device, "an upstream gradient", gradient, {u.size(0)}, arithmetic_of(dtype));
  };
  const auto total = held(grad_total), similarity = held(grad_similarity),
             diffusion = held(grad_diffusion), bending = held(grad_bending),
             determinant = held(grad_determinant);
  Tensor gradient = torch::stable::new_empty(u, u.sizes(), arithmetic_of(dtype));
  if (u.numel() == 0) return torch::stable::to(gradient, dtype);
  dispatch_storage("displacement", u, [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Tensor scratch = workspace(u, workspace_doubles(in.problem));
    const Upstream<T> upstream{data_or_null<T>(total), data_or_null<T>(similarity),
                               data_or_null<T>(diffusion), data_or_null<T>(bending),
                               data_or_null<T>(determinant)};
    launch_gradient(in.problem, in.images<S>(), upstream, Terms<T>{}, output<T>(gradient),
                    static_cast<T*>(nullptr), output<double>(scratch), device.stream());
  });
  return torch::stable::to(gradient, dtype);  // rounded once
}

}  // namespace
}  // namespace diffreg::registration_objective

DIFFREG_CUDA_LIBRARY(library) {
  library.impl("registration_objective", TORCH_BOX(&diffreg::registration_objective::forward));
  library.impl("registration_objective_backward",
               TORCH_BOX(&diffreg::registration_objective::backward));
}
