// CPU driver of diffreg::registration_objective and
// diffreg::registration_objective_backward, composed of the operators' drivers: the warped image
// and the gradient to it are held once, everything else is added to the displacement's gradient.
#include <torch/csrc/stable/library.h>

#include "../common/cpu_driver.h"
#include "../common/mask.h"
#include "../correlation/correlation_cpu.h"
#include "../deformation_energy/deformation_energy_cpu.h"
#include "../local_correlation/local_correlation_cpu.h"
#include "../parallel_level_sets/parallel_level_sets_cpu.h"
#include "../warp/warp_cpu.h"
#include "arguments.h"

namespace diffreg::registration_objective {
namespace {

using deformation_energy::Energies;
using parallel_level_sets::Variant;

// The arguments, checked, and their tensors contiguous.
struct Inputs : Arguments {
  warp::Sampling sampling;
  deformation_energy::Options options;

  explicit Inputs(const Arguments& arguments)
      : Arguments(arguments),
        sampling{warp::Interpolation::linear, parse("padding", padding, warp::kPaddings)} {
    check_image("moving", moving);
    check_displacement(displacement);
    check_axes(moving);
    check_axes(displacement);
    warp::check_pair(moving, displacement);
    check_dtype("displacement", displacement, moving.scalar_type());
    check_dtype("fixed", fixed, moving.scalar_type());
    check_shape("fixed", fixed, warp::warped_shape(moving, displacement));
    check_numbers(arguments);
    options = deformation_energy::parse_options(displacement, spacing, penalty, threshold);
    eps_moving = scale("eps_moving", eps_moving);
    eps_fixed = scale("eps_fixed", eps_fixed);
    if (mask) {
      check_shape("mask", *mask, mask_shape(fixed));
      check_dtype("mask", *mask, moving.scalar_type());
      mask = torch::stable::contiguous(*mask);
    }
    moving = torch::stable::contiguous(moving);
    fixed = torch::stable::contiguous(fixed);
    displacement = torch::stable::contiguous(displacement);
  }

 private:
  std::optional<Tensor> scale(const char* name, const std::optional<Tensor>& eps) const {
    STD_TORCH_CHECK(eps || !uses_level_sets(mixture), name, " is needed by the measure");
    if (!eps) return std::nullopt;
    check_shape(name, *eps, {moving.size(0)});
    check_dtype(name, *eps, moving.scalar_type());
    return torch::stable::contiguous(*eps);
  }
};

// Mean squared difference; its gradient is added as the other measures' are.
std::vector<double> measure_squares(const Tensor& warped, const Tensor& fixed,
                                    const std::optional<Tensor>& mask,
                                    const std::vector<double>& factors, Tensor* gradient) {
  const int64_t N = warped.size(0), C = warped.size(1);
  std::vector<double> values(N, 0.0);
  if (warped.numel() == 0) return values;
  dispatch_floating("warped", warped, [&](auto zero) {
    using T = decltype(zero);
    const Mask<T> weights(mask, warped);
    const int64_t rows = rows_of(warped), W = width_of(warped);
    StripSums<1> sums(N, strip_count(rows));
    T* out = gradient ? gradient->mutable_data_ptr<T>() : nullptr;
    for_each_strip(N, rows, W, [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
      const T factor = out ? static_cast<T>(weights.mean(n, factors[n])) : T(0);
      for (int64_t c = n * C; c < (n + 1) * C; ++c) {
        for (int64_t row = first; row < end; ++row) {
          const int64_t at = (c * rows + row) * W;
          const T *w = warped.const_data_ptr<T>() + at, *r = fixed.const_data_ptr<T>() + at;
          with_weights(weights.row(n, row), [&](const auto& weight) {
            *sums.at(n, strip) += sum_row<T>(0, W, [&](int64_t x) DIFFREG_INLINE_LAMBDA {
              return weight(x) * counted(squared_difference(w[x], r[x]), weight(x));
            });
            if (!out) return;
#pragma GCC ivdep
            for (int64_t x = 0; x < W; ++x) {
              out[at + x] +=
                  factor * weight(x) * counted(squared_difference_slope(w[x], r[x]), weight(x));
            }
          });
        }
      }
    });
    for (int64_t n = 0; n < N; ++n) values[n] = weights.mean(n, sums.total(n, 0));
  });
  return values;
}

// One measure of every sample; adds factors times its gradient where `gradient` is not null.
std::vector<double> measure(Measure measure, const Inputs& inputs, const Tensor& warped,
                            const std::vector<double>& factors, Tensor* gradient) {
  const auto level_sets = [&](Variant variant) {
    return parallel_level_sets::measure(
        {warped, inputs.fixed, *inputs.eps_moving, *inputs.eps_fixed, variant, inputs.mask},
        factors, gradient);
  };
  switch (measure) {
    case kSsd: return measure_squares(warped, inputs.fixed, inputs.mask, factors, gradient);
    case kNcc: return correlation::measure({warped, inputs.fixed, inputs.mask}, factors, gradient);
    case kLncc:
      return local_correlation::measure({warped, inputs.fixed, inputs.window, inputs.mask}, factors,
                                        gradient);
    case kPls: return level_sets(Variant::pls);
    case kSmoothPls: return level_sets(Variant::smooth);
    default: return level_sets(Variant::ngf);
  }
}

// The mixture of every sample; where `gradient` is not null, adds upstream times that to it.
std::vector<double> similarity(const Inputs& inputs, const Tensor& warped,
                               const std::vector<Weights>& upstream, Tensor* gradient) {
  std::vector<double> sums(upstream.size(), 0.0), factors(upstream.size());
  for (int k = 0; k < kMeasures; ++k) {
    if (inputs.mixture[k] == 0) continue;
    for (size_t n = 0; n < factors.size(); ++n) {
      factors[n] = upstream[n].similarity * inputs.mixture[k];
    }
    const auto values = measure(Measure(k), inputs, warped, factors, gradient);
    for (size_t n = 0; n < sums.size(); ++n) sums[n] += inputs.mixture[k] * values[n];
  }
  return sums;
}

// What a gradient is made of, the energies and the similarity of every sample with it.
struct Values {
  std::vector<double> similarity;
  std::vector<Energies> energies;
};

// The gradient to the warped image is 0 in the samples whose similarity nobody weighs.
void clear_unweighed(const std::vector<Weights>& factors, Tensor& to_warped) {
  if (to_warped.numel() == 0) return;
  dispatch_floating("warped", to_warped, [&](auto zero) {
    using T = decltype(zero);
    const int64_t values = to_warped.numel() / to_warped.size(0);
    for (size_t n = 0; n < factors.size(); ++n) {
      if (factors[n].similarity != 0) continue;
      std::fill_n(to_warped.mutable_data_ptr<T>() + n * values, values, T(0));
    }
  });
}

// Fills the gradient to the displacement. A similarity and a determinant of factor 0 give nothing,
// not even NaN.
Values fill_gradient(const Inputs& inputs, const Tensor& warped,
                     const std::vector<Weights>& factors, bool valued, Tensor& gradient) {
  std::vector<Energies> of_energies;
  std::vector<char> penalised;
  bool measured = false;
  for (const Weights& factor : factors) {
    of_energies.push_back({factor.diffusion, factor.bending, factor.determinant});
    penalised.push_back(factor.determinant != 0);
    measured |= factor.similarity != 0;
  }
  Values values;
  values.energies = deformation_energy::energies_and_gradient(
      inputs.displacement, inputs.options, of_energies, penalised, valued, gradient);
  if (!measured) {
    if (valued) values.similarity = similarity(inputs, warped, factors, nullptr);
    return values;
  }
  Tensor to_warped = torch::stable::new_zeros(warped, warped.sizes());
  values.similarity = similarity(inputs, warped, factors, &to_warped);
  clear_unweighed(factors, to_warped);
  warp::add_gradients(to_warped, inputs.moving, inputs.displacement, inputs.sampling, nullptr,
                      &gradient, true, inputs.mask ? &*inputs.mask : nullptr);
  return values;
}

Outputs run_forward(const Arguments& arguments, bool need_gradient, bool need_warped) {
  const Inputs inputs(arguments);
  const std::vector<double>& weights = inputs.weights;
  const Tensor& u = inputs.displacement;
  const std::vector<Weights> all(u.size(0), {weights[0], weights[1], weights[2], weights[3]});
  Tensor gradient = gradient_like(u, need_gradient);
  const Tensor warped = warp::warped_image(inputs.moving, u, inputs.sampling);
  Values values;
  if (need_gradient) {
    values = fill_gradient(inputs, warped, all, true, gradient);
  } else {
    values = {similarity(inputs, warped, all, nullptr),
              deformation_energy::energies_of(u, inputs.options)};
  }
  std::vector<double> terms[5];  // the total first
  for (int64_t n = 0; n < u.size(0); ++n) {
    const auto& energies = values.energies[n];
    const double found[] = {values.similarity[n], energies[0], energies[1], energies[2]};
    double total = 0;
    for (int k = 0; k < 4; ++k) {
      terms[k + 1].push_back(found[k]);
      total += weights[k] * found[k];
    }
    terms[0].push_back(total);
  }
  const auto of = [&](int term) { return new_scalars("displacement", u, terms[term]); };
  return {of(0),   of(1), of(2), of(3), of(4), need_warped ? warped : gradient_like(u, false),
          gradient};
}

// What each term's upstream gradient, where there is one, and the total's make of its factor.
std::vector<Weights> upstream_weights(const UpstreamTensors& upstream,
                                      const std::vector<double>& weights, const Tensor& u) {
  const std::optional<Tensor> gradients[5] = {upstream.total, upstream.similarity,
                                              upstream.diffusion, upstream.bending,
                                              upstream.determinant};
  const int64_t N = u.size(0);
  std::vector<double> all[5];
  for (int k = 0; k < 5; ++k) {
    all[k] = gradients[k] ? scalars_of("an upstream gradient", *gradients[k], u)
                          : std::vector<double>(N, 0);
  }
  std::vector<Weights> found(N);
  for (int64_t n = 0; n < N; ++n) {
    const auto of = [&](int k) { return weights[k] * all[0][n] + all[k + 1][n]; };
    found[n] = {of(0), of(1), of(2), of(3)};
  }
  return found;
}

Tensor run_backward(const UpstreamTensors& gradients, const Arguments& arguments) {
  const Inputs inputs(arguments);
  const Tensor& u = inputs.displacement;
  Tensor gradient = torch::stable::new_empty(u, u.sizes());
  if (u.numel() == 0) return gradient;
  const Tensor warped = warp::warped_image(inputs.moving, u, inputs.sampling);
  fill_gradient(inputs, warped, upstream_weights(gradients, inputs.weights, u), false, gradient);
  return gradient;
}

void scale(const Tensor& tensor, const Tensor& factor) {
  check_scale(tensor, factor);
  STD_TORCH_CHECK(tensor.is_cpu() && factor.is_cpu(), "tensor and factor must be on the CPU");
  if (tensor.numel() == 0) return;
  dispatch_floating("tensor", tensor, [&](auto zero) {
    using T = decltype(zero);
    const int64_t N = tensor.size(0), values = tensor.numel() / N;
    T* data = static_cast<T*>(tensor.mutable_data_ptr());
    for_each_strip(
        N, values, 1,
        [&](int64_t n, int64_t, int64_t first, int64_t end) {
          const T by = factor.const_data_ptr<T>()[n * factor.stride(0)];
          if (by == 1) return;
          for (int64_t k = n * values + first; k < n * values + end; ++k) {
            data[k] = unless_zero(by, by * data[k], T(0));
          }
        },
        kVoxelsPerThread);
  });
}

}  // namespace
}  // namespace diffreg::registration_objective

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  using namespace diffreg::registration_objective;
  library.impl("registration_objective", TORCH_BOX(&forward<&run_forward>));
  library.impl("registration_objective_backward", TORCH_BOX(&backward<&run_backward>));
  library.impl("registration_objective_scale", TORCH_BOX(&scale));
}
