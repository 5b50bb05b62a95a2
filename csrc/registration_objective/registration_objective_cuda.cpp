// CUDA driver of diffreg::registration_objective and diffreg::registration_objective_backward,
// composed of the operators' kernels: the warped image and the gradient to it are held once,
// everything else is added to the displacement's gradient. Nothing is read back.
#include "registration_objective_cuda.h"

#include <algorithm>
#include <limits>

#include "../common/cuda_driver.h"
#include "../correlation/correlation_cuda.h"
#include "../deformation_energy/deformation_energy_cuda.h"
#include "../local_correlation/local_correlation_cuda.h"
#include "../parallel_level_sets/parallel_level_sets_cuda.h"
#include "../warp/warp_cuda.h"
#include "arguments.h"

namespace diffreg::registration_objective {
namespace {

using namespace diffreg::cuda;
using parallel_level_sets::Variant;

// The arguments, checked, and their tensors contiguous.
struct Inputs : Arguments {
  warp::Sampling sampling;
  deformation_energy::PenaltyKind kind;
  Problem problem;
  Scalars moving_scale, fixed_scale;

  Inputs(const Device& device, const Arguments& arguments) : Arguments(arguments) {
    sampling = {warp::Interpolation::linear, parse("padding", padding, warp::kPaddings)};
    check_image(device, "moving", moving);
    check_displacement(device, displacement);
    warp::check_pair(moving, displacement);
    check_numbers(arguments);
    const auto dtype = moving.scalar_type();
    check_dtype("displacement", displacement, dtype);
    auto shape = sizes_of(displacement);
    shape[1] = moving.size(1);
    fixed = checked(device, "fixed", fixed, shape, dtype);
    if (mask) mask = checked_mask(device, mask, fixed);
    kind = parse("penalty", penalty, deformation_energy::kPenalties);
    if (uses_level_sets(mixture)) {
      moving_scale = scale(device, "eps_moving", eps_moving);
      fixed_scale = scale(device, "eps_fixed", eps_fixed);
    }
    moving = torch::stable::contiguous(moving);
    displacement = torch::stable::contiguous(displacement);
    problem = {
        moving.size(0), moving.size(1), 1, {}, {weights[0], weights[1], weights[2], weights[3]}};
    for (int64_t k = 2; k < fixed.dim(); ++k) problem.voxels *= fixed.size(k);
    std::copy_n(mixture.begin(), static_cast<int>(kMeasures), problem.mixture);
  }

 private:
  Scalars scale(const Device& device, const char* name, const std::optional<Tensor>& eps) const {
    STD_TORCH_CHECK(eps, name, " is needed by the measure");
    return {device, name, *eps, moving};
  }
};

// The parts of one objective, on images of the arithmetic's type: what is between them is not
// rounded.
template <int D, typename S>
class Parts {
  using T = Arithmetic<S>;

 public:
  Parts(const Device& device, const Inputs& inputs)
      : in_(inputs),
        stream_(device.stream()),
        fixed_(torch::stable::to(inputs.fixed, arithmetic_of(inputs.fixed.scalar_type()))),
        warped_(torch::stable::new_empty(fixed_, fixed_.sizes())) {
    for (int k = 0; k < D; ++k) size_[k] = fixed_.size(2 + k);
  }

  void warp_image() {
    warp::launch_forward(warp_problem(), data<S>(in_.moving), data<S>(in_.displacement),
                         output<T>(warped_), stream_);
  }
  const Tensor& warped() const { return warped_; }

  // The measures' values (kMeasures, N) and, added to the displacement's, the gradient that follows
  // from that to each of them, (kMeasures, N), which may be 0 where `some` samples alone are
  // weighed; a null pointer stands for what is not asked for.
  void measure(T* values, const T* upstream, T* gradient, bool some) {
    const int64_t N = in_.problem.samples;
    Tensor to_warped = gradient_like(warped_, gradient != nullptr);
    bool accumulate = false;
    for (int k = 0; k < kMeasures; ++k) {
      if (in_.mixture[k] == 0) continue;
      measure(Measure(k), values ? values + k * N : nullptr, upstream ? upstream + k * N : nullptr,
              gradient ? output<T>(to_warped) : nullptr, accumulate);
      accumulate = true;
    }
    if (!gradient || !accumulate) return;
    if (some) launch_clear(in_.problem, upstream, output<T>(to_warped), stream_);
    warp::launch_backward(warp_problem(), data<T>(to_warped), data<S>(in_.moving),
                          data<S>(in_.displacement), static_cast<T*>(nullptr), gradient, true,
                          stream_, data_or_null<T>(in_.mask));
  }

  void energies(const deformation_energy::Energies<T>& found) {
    const auto problem = energy_problem();
    Tensor scratch = workspace(warped_, workspace_doubles(problem));
    launch_forward(problem, data<S>(in_.displacement), output<double>(scratch), found, stream_);
  }
  void energies_and_gradient(const deformation_energy::Upstream<T>& upstream,
                             const deformation_energy::Energies<T>& found, T* gradient) {
    const auto problem = energy_problem();
    Tensor scratch = workspace(warped_, workspace_doubles(problem));
    launch_both(problem, upstream, data<S>(in_.displacement), output<double>(scratch), found,
                gradient, stream_);
  }

 private:
  warp::Problem<D> warp_problem() const {
    return {in_.problem.samples, in_.problem.channels, in_.moving.sizes().data() + 2, size_,
            in_.sampling};
  }
  deformation_energy::Problem<D> energy_problem() const {
    deformation_energy::Problem<D> problem{
        in_.problem.samples, {}, {size_, in_.spacing.data()}, in_.kind, in_.threshold};
    std::copy_n(size_, D, problem.size);
    return problem;
  }

  void measure(Measure measure, T* value, const T* upstream, T* gradient, bool accumulate) {
    switch (measure) {
      case kSsd: return squares(value, upstream, gradient, accumulate);
      case kNcc: return correlation(value, upstream, gradient, accumulate);
      case kLncc: return local_correlation(value, upstream, gradient, accumulate);
      case kPls: return level_sets(Variant::pls, value, upstream, gradient, accumulate);
      case kSmoothPls: return level_sets(Variant::smooth, value, upstream, gradient, accumulate);
      default: return level_sets(Variant::ngf, value, upstream, gradient, accumulate);
    }
  }

  void squares(T* value, const T* upstream, T* gradient, bool accumulate) {
    Tensor scratch = workspace(warped_, squares_doubles(in_.problem));
    launch_squares(in_.problem, data<T>(warped_), data<T>(fixed_), data_or_null<T>(in_.mask),
                   output<double>(scratch), value, upstream, gradient, accumulate, stream_);
  }

  void correlation(T* value, const T* upstream, T* gradient, bool accumulate) {
    const Problem& own = in_.problem;
    const correlation::Problem problem{own.samples, own.channels, own.voxels,
                                       double(std::numeric_limits<T>::epsilon())};
    const correlation::Images<T> images{data<T>(warped_), data<T>(fixed_),
                                        data_or_null<T>(in_.mask)};
    const int64_t moments = own.samples * correlation::kMoments;
    Tensor scratch =
        workspace(warped_, moments + own.samples + correlation::forward_doubles<T>(problem));
    double* of_sample = output<double>(scratch);
    T* unused = reinterpret_cast<T*>(of_sample + moments);
    launch_forward(problem, images, of_sample + moments + own.samples, value ? value : unused,
                   of_sample, stream_);
    if (!gradient) return;
    launch_backward(problem, images, upstream, of_sample, gradient, static_cast<T*>(nullptr),
                    accumulate, stream_);
  }

  void local_correlation(T* value, const T* upstream, T* gradient, bool accumulate) {
    const local_correlation::Problem problem(in_.problem.samples, in_.problem.channels, size_, D,
                                             in_.window);
    const local_correlation::Images<T> images{data<T>(warped_), data<T>(fixed_),
                                              data_or_null<T>(in_.mask)};
    const local_correlation::Results<T> results{value, gradient, nullptr, accumulate};
    Tensor scratch = workspace(warped_, workspace_doubles(problem, images, results));
    local_correlation::launch<D>(problem, images, upstream, output<double>(scratch), results,
                                 stream_);
  }

  void level_sets(Variant variant, T* value, const T* upstream, T* gradient, bool accumulate) {
    parallel_level_sets::Problem<D> problem{in_.problem.samples, in_.problem.channels, {}, variant};
    std::copy_n(size_, D, problem.size);
    const parallel_level_sets::Images<T> images{data<T>(warped_), data<T>(fixed_),
                                                in_.moving_scale.as<T>(), in_.fixed_scale.as<T>(),
                                                data_or_null<T>(in_.mask)};
    if (value) {
      Tensor scratch = workspace(warped_, parallel_level_sets::forward_doubles<T>(problem));
      launch_forward(problem, images, output<double>(scratch), value, stream_);
    }
    if (!gradient) return;
    const bool masked = in_.mask.has_value();
    Tensor scratch = workspace(warped_, backward_doubles(problem, masked));
    launch_backward(problem, images, upstream, output<double>(scratch), gradient,
                    static_cast<T*>(nullptr), accumulate, stream_);
  }

  const Inputs& in_;
  void* stream_;
  Tensor fixed_, warped_;  // (N, C, *to)
  int64_t size_[D];
};

// Calls run(parts, T{}).
template <typename Run>
void with_parts(const Device& device, const Inputs& inputs, const Run& run) {
  dispatch_dimensions(inputs.displacement, [&](auto dimensions) {
    dispatch_storage("displacement", inputs.displacement, [&](auto zero) {
      using S = decltype(zero);
      run(Parts<decltype(dimensions)::value, S>(device, inputs), Arithmetic<S>{});
    });
  });
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
      const T* to_energies = upstream + kMeasures * N;
      parts.energies_and_gradient({to_energies, to_energies + N, to_energies + 2 * N}, energies,
                                  to_displacement);
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
    T* upstream = output<T>(scratch);
    const T* to_energies = upstream + kMeasures * N;
    T* unused = upstream + kParts * N;
    const Upstream<T> pointers{data_or_null<T>(total), data_or_null<T>(similarity),
                               data_or_null<T>(diffusion), data_or_null<T>(bending),
                               data_or_null<T>(determinant)};
    launch_upstream(in.problem, &pointers, upstream, device.stream());
    parts.energies_and_gradient({to_energies, to_energies + N, to_energies + 2 * N},
                                {unused, unused + N, unused + 2 * N}, output<T>(gradient));
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
