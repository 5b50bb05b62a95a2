// CUDA driver of diffreg::affine_warp and diffreg::affine_warp_backward.
#include "affine_warp_cuda.h"

#include "../common/cuda_driver.h"
#include "../warp/words.h"
#include "arguments.h"

namespace diffreg::affine_warp {
namespace {

using namespace diffreg::cuda;
using warp::Interpolation;
using warp::Sampling;

void check(const Device& device, const Tensor& moving, const Tensor& matrix,
           const std::optional<Tensor>& displacement, const std::vector<int64_t>& size) {
  check_image(device, "moving", moving);
  device.check("matrix", matrix);
  if (displacement) check_displacement(device, *displacement);
  const bool wide = in_double(moving, displacement);
  check_map(moving, matrix, displacement, size, wide ? ScalarType::Double : ScalarType::Float);
  STD_TORCH_CHECK(size.size() < 3 || size[2] == 0 || size[1] < (int64_t{1} << 31) / size[2],
                  "size must have planes of fewer than 2^31 voxels");
}

// Calls run(problem), of as many axes as the image has.
template <typename Run>
void with_problem(const Tensor& moving, const Tensor& matrix, const std::vector<int64_t>& size,
                  const Sampling& sampling, const Run& run) {
  dispatch_dimensions(moving, [&](auto dimensions) {
    warp::Problem<decltype(dimensions)::value> problem(
        matrix.size(0), moving.size(1), moving.sizes().data() + 2, size.data(), sampling);
    if (moving.size(0) < matrix.size(0)) problem.image_stride = 0;
    run(problem);
  });
}

// Calls run(U{}) with the type of the displacement, or without one that of the points.
template <typename Run>
void dispatch_field(const Tensor& moving, const std::optional<Tensor>& displacement,
                    const Run& run) {
  if (displacement) return dispatch_storage("displacement", *displacement, run);
  in_double(moving, displacement) ? run(double{}) : run(float{});
}

Tensor forward(const Tensor& moving, const Tensor& matrix,
               const std::optional<Tensor>& displacement, std::vector<int64_t> asked_size,
               Text interpolation, Text padding) {
  const Device device(moving);
  const Sampling sampling = warp::parse_sampling(interpolation, padding);
  const auto size = fixed_size(displacement, asked_size);
  check(device, moving, matrix, displacement, size);
  const bool is_nearest = sampling.interpolation == Interpolation::nearest;
  if (displacement && !is_nearest) {
    check_dtype("displacement", *displacement, moving.scalar_type());
  }
  const Tensor image = torch::stable::contiguous(moving);
  const Tensor map = torch::stable::contiguous(matrix);
  const auto field = contiguous(displacement);
  Tensor warped = torch::stable::new_empty(image, on_grid(matrix, moving.size(1), size));
  if (warped.numel() == 0) return warped;
  with_problem(image, map, size, sampling, [&](const auto& problem) {
    if (is_nearest) {
      return dispatch_field(image, field, [&](auto zero) {
        using U = decltype(zero);
        warp::with_words(image, [&](auto nan) {
          using V = decltype(nan);
          launch_nearest(problem, nan, data<V>(image), data<double>(map), data_or_null<U>(field),
                         output<V>(warped), device.stream());
        });
      });
    }
    dispatch_storage("moving", image, [&](auto zero) {
      using S = decltype(zero);
      launch_forward(problem, data<S>(image), data<double>(map), data_or_null<S>(field),
                     output<S>(warped), device.stream());
    });
  });
  return warped;
}

std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& moving,
                                    const Tensor& matrix, const std::optional<Tensor>& displacement,
                                    std::vector<int64_t> asked_size, Text interpolation,
                                    Text padding, bool need_matrix, bool need_displacement) {
  const Device device(moving);
  const Sampling sampling = warp::parse_sampling(interpolation, padding);
  const auto size = fixed_size(displacement, asked_size);
  check(device, moving, matrix, displacement, size);
  const auto dtype = moving.scalar_type();
  if (displacement) check_dtype("displacement", *displacement, dtype);
  const Tensor upstream =
      checked(device, "gradient", gradient, on_grid(matrix, moving.size(1), size), dtype);
  STD_TORCH_CHECK(displacement || !need_displacement, "there is no displacement");
  const Tensor image = torch::stable::contiguous(moving);
  const Tensor map = torch::stable::contiguous(matrix);
  const auto field = contiguous(displacement);
  Tensor to_map = gradient_like(map, need_matrix);
  Tensor to_field = gradient_like(field.value_or(image), need_displacement);
  if (upstream.numel() == 0) {
    return {torch::stable::zero_(to_map), torch::stable::zero_(to_field)};
  }
  with_problem(image, map, size, sampling, [&](const auto& problem) {
    dispatch_storage("moving", image, [&](auto zero) {
      using S = decltype(zero);
      Tensor scratch = workspace(map, need_matrix ? backward_doubles(problem) : 0);
      launch_backward(problem, data<S>(upstream), data<S>(image), data<double>(map),
                      data_or_null<S>(field), output<double>(scratch),
                      need_matrix ? output<double>(to_map) : nullptr,
                      need_displacement ? output<S>(to_field) : nullptr, device.stream());
    });
  });
  return {to_map, to_field};
}

}  // namespace
}  // namespace diffreg::affine_warp

DIFFREG_CUDA_LIBRARY(library) {
  library.impl("affine_warp", TORCH_BOX(&diffreg::affine_warp::forward));
  library.impl("affine_warp_backward", TORCH_BOX(&diffreg::affine_warp::backward));
}
