// CPU driver of diffreg::affine_warp and diffreg::affine_warp_backward.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../common/cpu_driver.h"
#include "arguments.h"
#include "mapped_rows.h"

namespace diffreg::affine_warp {
namespace {

using warp::Interpolation;
using warp::Sampling;

void check(const Tensor& moving, const Tensor& matrix, const std::optional<Tensor>& displacement,
           const std::vector<int64_t>& size) {
  check_image("moving", moving);
  check_axes(moving);
  STD_TORCH_CHECK(matrix.is_cpu(), "matrix must be on the CPU");
  if (displacement) {
    check_displacement(*displacement);
    dispatch_floating("displacement", *displacement, [](auto) {});
  }
  const bool wide = in_double(moving, displacement);
  check_map(moving, matrix, displacement, size, wide ? ScalarType::Double : ScalarType::Float);
}

// Calls run(grids, field) with the field of the points.
template <typename Run>
void with_field(const Tensor& moving, const Tensor& matrix,
                const std::optional<Tensor>& displacement, const std::vector<int64_t>& size,
                const Run& run) {
  dispatch_dimensions(moving, [&](auto dimensions) {
    constexpr int D = decltype(dimensions)::value;
    const Grids<D> grids(matrix.size(0), moving, size.data());
    const double* map = matrix.const_data_ptr<double>();
    const auto run_in = [&](auto zero) {
      using T = decltype(zero);
      if (!displacement) return run(grids, Mapped<D, T, false>{map, nullptr});
      run(grids, Mapped<D, T, true>{map, displacement->const_data_ptr<T>()});
    };
    in_double(moving, displacement) ? run_in(double{}) : run_in(float{});
  });
}

Tensor forward(const Tensor& moving, const Tensor& matrix,
               const std::optional<Tensor>& displacement, std::vector<int64_t> asked_size,
               Text interpolation, Text padding) {
  const Sampling sampling = warp::parse_sampling(interpolation, padding);
  const auto size = fixed_size(displacement, asked_size);
  check(moving, matrix, displacement, size);
  if (sampling.interpolation != Interpolation::nearest) {
    dispatch_floating("moving", moving, [](auto) {});
    if (displacement) check_dtype("displacement", *displacement, moving.scalar_type());
  }
  const Tensor image = torch::stable::contiguous(moving);
  const Tensor map = torch::stable::contiguous(matrix);
  Tensor warped = torch::stable::new_empty(image, on_grid(matrix, moving.size(1), size));
  if (warped.numel() == 0) return warped;
  with_field(image, map, contiguous(displacement), size, [&](const auto& grids, const auto& field) {
    warp::sample(grids, field, sampling, image, warped);
  });
  return warped;
}

// What the gradient along each axis of moving, which add(line, out, stride) adds up for a line,
// gives to the map and to the displacement. Lines' sums are added in the order of the rows.
template <int D, typename T, bool displaced, typename Add>
void collect(const Grids<D>& grids, const Mapped<D, T, displaced>& field, const Add& add,
             double* grad_matrix,     // (N, D, D + 1) or null
             T* grad_displacement) {  // (N, D, *to) or null
  constexpr int K = D * (D + 1);
  const int64_t width = grids.to[D - 1];
  StripSums<K> sums(grids.samples, grids.to[0]);
  warp::for_each_row(grids, [&](int64_t n, int64_t row) {
    std::vector<T> along(D * width);
    const int32_t origin[D] = {};
    const Anchor<D, T> anchor = field.anchor(n, origin);
    warp::for_lines(grids, n, row, [&](const Line<D>& line) {
      std::fill(along.begin(), along.end(), T(0));
      add(line, along.data(), width);
      if (grad_matrix) add_line(grids, field, line, along.data(), sums.at(n, row));
      if (!grad_displacement) return;
      T* out = grad_displacement + n * D * grids.to_voxels + line.voxel;
#pragma GCC ivdep
      for (int64_t x = 0; x < width; ++x) {  // hot: onto
        T of_voxel[D];
        for (int k = 0; k < D; ++k) of_voxel[k] = along[k * width + x];
        for (int j = 0; j < D; ++j) {
          out[j * grids.to_voxels + x] = to_displacement(anchor.linear, of_voxel, j);
        }
      }
    });
  });
  for (int64_t n = 0; grad_matrix && n < grids.samples; ++n) {
    for (int k = 0; k < K; ++k) grad_matrix[n * K + k] = sums.total(n, k);
  }
}

// The gradient to moving is that of warp by M (p + u(p), 1) - p.
std::tuple<Tensor, Tensor> backward(const Tensor& gradient, const Tensor& moving,
                                    const Tensor& matrix, const std::optional<Tensor>& displacement,
                                    std::vector<int64_t> asked_size, Text interpolation,
                                    Text padding, bool need_matrix, bool need_displacement) {
  const Sampling sampling = warp::parse_sampling(interpolation, padding);
  const auto size = fixed_size(displacement, asked_size);
  check(moving, matrix, displacement, size);
  if (displacement) check_dtype("displacement", *displacement, moving.scalar_type());
  check_dtype("gradient", gradient, moving.scalar_type());
  check_shape("gradient", gradient, on_grid(matrix, moving.size(1), size));
  STD_TORCH_CHECK(displacement || !need_displacement, "there is no displacement");
  const Tensor upstream = torch::stable::contiguous(gradient);
  const Tensor image = torch::stable::contiguous(moving);
  const Tensor map = torch::stable::contiguous(matrix);
  const auto field = contiguous(displacement);
  Tensor to_map = zero_gradient_like(map, need_matrix);
  Tensor to_field = gradient_like(field.value_or(image), need_displacement);
  if (upstream.numel() == 0) return {to_map, torch::stable::zero_(to_field)};
  dispatch_floating("moving", image, [](auto) {});
  with_field(image, map, field, size, [&](const auto& grids, const auto& points) {
    using T = typename std::decay_t<decltype(points)>::Type;
    warp::with_derivatives(
        grids, points, sampling, upstream.const_data_ptr<T>(), image.const_data_ptr<T>(),
        static_cast<const T*>(nullptr), [&](const auto& add) {
          collect(grids, points, add, need_matrix ? to_map.mutable_data_ptr<double>() : nullptr,
                  need_displacement ? to_field.mutable_data_ptr<T>() : nullptr);
        });
  });
  return {to_map, to_field};
}

}  // namespace
}  // namespace diffreg::affine_warp

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("affine_warp", TORCH_BOX(&diffreg::affine_warp::forward));
  library.impl("affine_warp_backward", TORCH_BOX(&diffreg::affine_warp::backward));
}
