// CUDA driver of diffreg::warp and diffreg::warp_backward.
#include "warp_cuda.h"

#include "../common/cuda_driver.h"
#include "arguments.h"
#include "words.h"

namespace diffreg::warp {
namespace {

using namespace diffreg::cuda;

void check(const Device& device, const Tensor& moving, const Tensor& displacement) {
  check_image(device, "moving", moving);
  check_displacement(device, displacement);
  check_pair(moving, displacement);
}

// Calls run(problem), of as many axes as the displacement has.
template <typename Run>
void with_problem(const Tensor& moving, const Tensor& displacement, const Sampling& sampling,
                  const Run& run) {
  dispatch_dimensions(displacement, [&](auto dimensions) {
    const Problem<decltype(dimensions)::value> problem(moving.size(0), moving.size(1),
                                                       moving.sizes().data() + 2,
                                                       displacement.sizes().data() + 2, sampling);
    run(problem);
  });
}

Tensor forward(const Tensor& moving, const Tensor& displacement, Text interpolation, Text padding) {
  const Device device(displacement);
  const Sampling sampling = parse_sampling(interpolation, padding);
  check(device, moving, displacement);
  if (sampling.interpolation != Interpolation::nearest) {
    check_dtype("displacement", displacement, moving.scalar_type());
  }
  const Tensor image = torch::stable::contiguous(moving);
  const Tensor field = torch::stable::contiguous(displacement);
  Tensor warped = torch::stable::new_empty(image, warped_shape(moving, displacement));
  if (warped.numel() == 0) return warped;
  dispatch_storage("displacement", field, [&](auto zero) {
    using S = decltype(zero);
    with_problem(image, field, sampling, [&](const auto& problem) {
      if (sampling.interpolation == Interpolation::nearest) {
        return with_words(image, [&](auto nan) {
          using V = decltype(nan);
          launch_nearest(problem, nan, data<V>(image), data<S>(field), output<V>(warped),
                         device.stream());
        });
      }
      launch_forward(problem, data<S>(image), data<S>(field), output<S>(warped), device.stream());
    });
  });
  return warped;
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& moving,
                                    const Tensor& displacement, Text interpolation, Text padding,
                                    bool need_moving, bool need_displacement, bool deterministic) {
  const Device device(displacement);
  const Sampling sampling = parse_sampling(interpolation, padding);
  check(device, moving, displacement);
  const auto dtype = moving.scalar_type();
  check_dtype("displacement", displacement, dtype);
  const Tensor upstream =
      checked(device, "gradient", gradient, warped_shape(moving, displacement), dtype);
  const Tensor image = torch::stable::contiguous(moving);
  const Tensor field = torch::stable::contiguous(displacement);
  Tensor grad_moving = gradient_like(image, need_moving);
  Tensor grad_displacement = gradient_like(field, need_displacement);
  if (upstream.numel() == 0) {
    return {torch::stable::zero_(grad_moving), torch::stable::zero_(grad_displacement)};
  }
  dispatch_storage("moving", image, [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    // The gradient to moving is added up in the arithmetic type, and rounded once.
    Tensor sum = need_moving ? torch::stable::new_empty(image, image.sizes(), arithmetic_of(dtype))
                             : grad_moving;
    T* to_moving = need_moving ? output<T>(sum) : nullptr;
    S* to_displacement = need_displacement ? output<S>(grad_displacement) : nullptr;
    const bool gather = deterministic && need_moving;
    with_problem(image, field, sampling, [&](const auto& problem) {
      if (gather) {
        const Tensor boxes = workspace(field, gather_doubles(problem));
        launch_gather(problem, data<S>(upstream), data<S>(field),
                      static_cast<double*>(boxes.mutable_data_ptr()), to_moving, device.stream());
      }
      if (need_displacement || (need_moving && !gather)) {
        launch_backward(problem, data<S>(upstream), data<S>(image), data<S>(field),
                        gather ? nullptr : to_moving, to_displacement, false, device.stream());
      }
    });
    if (need_moving) grad_moving = torch::stable::to(sum, dtype);
  });
  return {grad_moving, grad_displacement};
}

}  // namespace
}  // namespace diffreg::warp

DIFFREG_CUDA_LIBRARY(library) {
  library.impl("warp", TORCH_BOX(&diffreg::warp::forward));
  library.impl("warp_backward", TORCH_BOX(&diffreg::warp::backward));
}
