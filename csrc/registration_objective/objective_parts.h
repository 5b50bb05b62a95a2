// CUDA driver only: the arguments of an objective, and its parts, which are the operators' kernels.
#pragma once

#include <algorithm>
#include <limits>

#include "../common/cuda_driver.h"
#include "../correlation/correlation_cuda.h"
#include "../deformation_energy/arguments.h"
#include "../deformation_energy/deformation_energy_cuda.h"
#include "../local_correlation/local_correlation_cuda.h"
#include "../parallel_level_sets/parallel_level_sets_cuda.h"
#include "../warp/warp_cuda.h"
#include "arguments.h"
#include "registration_objective_cuda.h"

namespace diffreg::registration_objective {

using namespace diffreg::cuda;
using parallel_level_sets::Variant;

// The arguments, checked, and their tensors contiguous.
struct Inputs : Arguments {
  warp::Sampling sampling;
  deformation_energy::Options options;
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
    fixed = checked(device, "fixed", fixed, warp::warped_shape(moving, displacement), dtype);
    if (mask) mask = checked_mask(device, mask, fixed);
    options = deformation_energy::parse_options(displacement, spacing, penalty, threshold);
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
    Tensor scratch = workspace(warped_, forward_doubles(problem));
    launch_forward(problem, data<S>(in_.displacement), output<double>(scratch), found, stream_);
  }
  // And fills the displacement's gradient, given that to all the parts, (kParts, N).
  void energies_and_gradient(const T* upstream, const deformation_energy::Energies<T>& found,
                             T* gradient) {
    const auto problem = energy_problem();
    const int64_t N = in_.problem.samples;
    const T* to_energies = upstream + kMeasures * N;
    Tensor scratch = workspace(warped_, deformation_energy::both_doubles<S>(problem));
    launch_both(problem, {to_energies, to_energies + N, to_energies + 2 * N},
                data<S>(in_.displacement), output<double>(scratch), found, gradient, stream_);
  }

 private:
  warp::Problem<D> warp_problem() const {
    return {in_.problem.samples, in_.problem.channels, in_.moving.sizes().data() + 2, size_,
            in_.sampling};
  }
  deformation_energy::Problem<D> energy_problem() const {
    return {in_.problem.samples, size_, in_.options.spacing.data(), in_.options.penalty,
            in_.options.threshold};
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
    const parallel_level_sets::Problem<D> problem(in_.problem.samples, in_.problem.channels, size_,
                                                  variant);
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

}  // namespace diffreg::registration_objective
