// What diffreg::registration_objective and its backward operator are called with, as one value, and
// the operators around a driver that takes it.
#pragma once

#include <tuple>
#include <utility>

#include "../common/check.h"
#include "../deformation_energy/deformation_energy.h"
#include "../warp/arguments.h"
#include "registration_objective.h"

namespace diffreg::registration_objective {

struct Arguments {
  Tensor moving;                                // (N, C, *from)
  Tensor fixed;                                 // (N, C, *to)
  Tensor displacement;                          // (N, D, *to)
  std::optional<Tensor> eps_moving, eps_fixed;  // (N), of the level sets
  std::optional<Tensor> mask;                   // (N, 1, *to)
  std::vector<double> mixture;                  // (kMeasures)
  std::vector<double> weights;                  // (4): as struct Weights
  std::string padding;
  std::vector<double> spacing;  // (D), voxels
  std::string penalty;
  double threshold;
  int64_t window;  // of local correlation, voxels
};

// The gradient to each term, (N), where there is one.
struct UpstreamTensors {
  std::optional<Tensor> total, similarity, diffusion, bending, determinant;
};

// total, similarity, diffusion, bending, determinant, and the warped image and the gradient of the
// total where they were asked for.
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline void check_numbers(const Arguments& arguments) {
  check_spacing(arguments.spacing, dimensions_of(arguments.displacement));
  check_length("mixture", arguments.mixture, kMeasures, "factors");
  check_length("weights", arguments.weights, 4, "factors");
  check_window(arguments.window);
}

inline bool uses_level_sets(const std::vector<double>& mixture) {
  return mixture[kPls] != 0 || mixture[kSmoothPls] != 0 || mixture[kNgf] != 0;
}

// Of a tensor (N, ...) and a factor (N) in its type.
inline void check_scale(const Tensor& tensor, const Tensor& factor) {
  STD_TORCH_CHECK(tensor.dim() > 0 && tensor.is_contiguous(),
                  "tensor must be (N, ...), contiguous");
  STD_TORCH_CHECK(factor.dim() == 1 && factor.size(0) == tensor.size(0),
                  "factor has the wrong shape: ", shape_of(factor));
  check_dtype("factor", factor, tensor.scalar_type());
}

// run(arguments, need_gradient, need_warped) is a driver's.
template <Outputs (*run)(const Arguments&, bool, bool)>
Outputs forward(const Tensor& moving, const Tensor& fixed, const Tensor& displacement,
                std::optional<Tensor> eps_moving, std::optional<Tensor> eps_fixed,
                std::optional<Tensor> mask, std::vector<double> mixture,
                std::vector<double> weights, Text padding, std::vector<double> spacing,
                Text penalty, double threshold, bool need_gradient, bool need_warped,
                int64_t window) {
  return run({moving, fixed, displacement, eps_moving, eps_fixed, mask, std::move(mixture),
              std::move(weights), std::move(padding), std::move(spacing), std::move(penalty),
              threshold, window},
             need_gradient, need_warped);
}

// The gradient to the displacement.
template <Tensor (*run)(const UpstreamTensors&, const Arguments&)>
Tensor backward(std::optional<Tensor> total, std::optional<Tensor> similarity,
                std::optional<Tensor> diffusion, std::optional<Tensor> bending,
                std::optional<Tensor> determinant, const Tensor& moving, const Tensor& fixed,
                const Tensor& displacement, std::optional<Tensor> eps_moving,
                std::optional<Tensor> eps_fixed, std::optional<Tensor> mask,
                std::vector<double> mixture, std::vector<double> weights, Text padding,
                std::vector<double> spacing, Text penalty, double threshold, int64_t window) {
  return run({total, similarity, diffusion, bending, determinant},
             {moving, fixed, displacement, eps_moving, eps_fixed, mask, std::move(mixture),
              std::move(weights), std::move(padding), std::move(spacing), std::move(penalty),
              threshold, window});
}

}  // namespace diffreg::registration_objective
