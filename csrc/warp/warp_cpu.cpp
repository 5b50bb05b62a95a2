// CPU driver of diffreg::warp and diffreg::warp_backward.
#include "warp_cpu.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/cpu_driver.h"
#include "moving_gradient.h"
#include "sampled_rows.h"

namespace diffreg::warp {
namespace {

// Adds to what is there where it is to `accumulate`, else to zeros, which are written line by line:
// they do not leave the cache.
template <int D, typename T>
void add_to_displacement(const Grids<D>& grids, const Sampling& sampling, bool accumulate,
                         const T* gradient,       // (N, C, *to)
                         const T* moving,         // (N, C, *from)
                         const T* displacement,   // (N, D, *to)
                         const T* mask,           // (N, 1, *to) or null
                         T* grad_displacement) {  // (N, D, *to)
  const Displaced<D, T> field{displacement};
  with_derivatives(grids, field, sampling, gradient, moving, mask, [&](const auto& add) {
    for_each_row(grids, [&](int64_t n, int64_t row) {
      for_lines(grids, n, row, [&](const Line<D>& line) {
        T* out = grad_displacement + n * D * grids.to_voxels + line.voxel;
        for (int k = 0; k < D && !accumulate; ++k) {
          std::fill_n(out + k * grids.to_voxels, grids.to[D - 1], T(0));
        }
        add(line, out, grids.to_voxels);
      });
    });
  });
}

template <int D>
Grids<D> grids_of(const Tensor& moving, const Tensor& displacement) {
  return {moving.size(0), moving, displacement.sizes().data() + 2};
}

}  // namespace

Tensor warped_image(const Tensor& moving, const Tensor& displacement, const Sampling& sampling) {
  Tensor warped = torch::stable::new_empty(moving, warped_shape(moving, displacement));
  if (warped.numel() == 0) return warped;
  dispatch_case("displacement", displacement, [&]<int D, typename T>() {
    const Displaced<D, T> field{displacement.const_data_ptr<T>()};
    sample(grids_of<D>(moving, displacement), field, sampling, moving, warped);
  });
  return warped;
}

void add_gradients(const Tensor& gradient, const Tensor& moving, const Tensor& displacement,
                   const Sampling& sampling, Tensor* to_moving, Tensor* to_displacement,
                   bool accumulate, const Tensor* mask) {
  if (gradient.numel() == 0) return;
  dispatch_case("moving", moving, [&]<int D, typename T>() {
    const auto grids = grids_of<D>(moving, displacement);
    const T *g = gradient.const_data_ptr<T>(), *u = displacement.const_data_ptr<T>();
    if (to_moving) add_to_moving(grids, sampling, g, u, to_moving->mutable_data_ptr<T>());
    if (to_displacement) {
      add_to_displacement(grids, sampling, accumulate, g, moving.const_data_ptr<T>(), u,
                          mask ? mask->const_data_ptr<T>() : nullptr,
                          to_displacement->mutable_data_ptr<T>());
    }
  });
}

namespace {

Tensor forward(const Tensor& moving, const Tensor& displacement, Text interpolation, Text padding) {
  const Sampling sampling = parse_sampling(interpolation, padding);
  check(moving, displacement);
  if (sampling.interpolation != Interpolation::nearest) {
    check_dtype("displacement", displacement, moving.scalar_type());
  }
  return warped_image(torch::stable::contiguous(moving), torch::stable::contiguous(displacement),
                      sampling);
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& moving,
                                    const Tensor& displacement, Text interpolation, Text padding,
                                    bool need_moving, bool need_displacement,
                                    bool /* deterministic, as always on the CPU */) {
  const Sampling sampling = parse_sampling(interpolation, padding);
  check(moving, displacement);
  check_dtype("displacement", displacement, moving.scalar_type());
  check_dtype("gradient", gradient, moving.scalar_type());
  check_shape("gradient", gradient, warped_shape(moving, displacement));
  const Tensor upstream = torch::stable::contiguous(gradient);
  const Tensor image = torch::stable::contiguous(moving);
  const Tensor field = torch::stable::contiguous(displacement);
  Tensor grad_moving = zero_gradient_like(image, need_moving);
  Tensor grad_displacement = gradient_like(field, need_displacement);
  if (upstream.numel() == 0) return {grad_moving, torch::stable::zero_(grad_displacement)};
  add_gradients(upstream, image, field, sampling, need_moving ? &grad_moving : nullptr,
                need_displacement ? &grad_displacement : nullptr, false);
  return {grad_moving, grad_displacement};
}

}  // namespace
}  // namespace diffreg::warp

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("warp", TORCH_BOX(&diffreg::warp::forward));
  library.impl("warp_backward", TORCH_BOX(&diffreg::warp::backward));
}
