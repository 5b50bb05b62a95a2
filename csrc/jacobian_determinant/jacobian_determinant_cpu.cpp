// Schema and CPU driver of diffreg::jacobian_determinant and
// diffreg::jacobian_determinant_backward.
#include <torch/csrc/stable/library.h>

#include "../common/cell_rows.h"
#include "../common/check.h"
#include "../common/parallel.h"
#include "jacobian_determinant.h"

namespace diffreg::jacobian_determinant {
namespace {

std::vector<int64_t> output_shape(const Tensor& u, Reduce reduce) {
  const int64_t rows = std::max<int64_t>(u.size(2) - 1, 0);
  const int64_t columns = std::max<int64_t>(u.size(3) - 1, 0);
  if (reduce == Reduce::none) return {u.size(0), 4, rows, columns};
  return {u.size(0), rows, columns};
}

Tensor forward(const Tensor& displacement, std::string reduce_name) {
  check_displacement(displacement);
  const Reduce reduce = parse("reduce", reduce_name, kReduces);
  const Tensor u = torch::stable::contiguous(displacement);
  const int64_t H = u.size(2), W = u.size(3);
  Tensor determinant = torch::stable::new_empty(u, output_shape(u, reduce));
  if (determinant.numel() == 0) return determinant;
  dispatch_floating("displacement", u, [&](auto zero) {
    using T = decltype(zero);
    T* out = determinant.mutable_data_ptr<T>();
    const int64_t cells = (H - 1) * (W - 1);
    for_each_strip(u.size(0), H - 1, W, [&](int64_t n, int64_t, int64_t first, int64_t end) {
      const Field<T> field{u.const_data_ptr<T>() + n * D * H * W, H, W};
      for (int64_t y = first; y < end; ++y) {
        for (int64_t x = 0; x < W - 1; ++x) {
          T corner[4];
          field.cell(y, x).determinants(corner);
          const int64_t at = y * (W - 1) + x;
          if (reduce == Reduce::none) {
            for (int k = 0; k < 4; ++k) out[(n * 4 + k) * cells + at] = corner[k];
          } else {
            out[n * cells + at] = reduced(reduce, corner);
          }
        }
      }
    });
  });
  return determinant;
}

Tensor backward(const Tensor& gradient, const Tensor& displacement, std::string reduce_name) {
  check_displacement(displacement);
  const Reduce reduce = parse("reduce", reduce_name, kReduces);
  check_dtype("gradient", gradient, displacement.scalar_type());
  check_shape("gradient", gradient, output_shape(displacement, reduce));
  const Tensor u = torch::stable::contiguous(displacement);
  const Tensor upstream = torch::stable::contiguous(gradient);
  const int64_t H = u.size(2), W = u.size(3);
  Tensor grad_displacement = torch::stable::new_zeros(u, u.sizes());
  if (upstream.numel() == 0) return grad_displacement;
  dispatch_floating("displacement", u, [&](auto zero) {
    using T = decltype(zero);
    const T* g = upstream.const_data_ptr<T>();
    const int64_t cells = (H - 1) * (W - 1);
    for_each_strip(u.size(0), H, W, [&](int64_t n, int64_t, int64_t first, int64_t end) {
      const Field<T> field{u.const_data_ptr<T>() + n * D * H * W, H, W};
      T* out = grad_displacement.mutable_data_ptr<T>() + n * D * H * W;
      add_cell_gradients(field, first, end, out,
                         [&](int64_t y, int64_t x, const Cell<T>& cell, T* corner) {
                           const int64_t at = y * (W - 1) + x;
                           if (reduce == Reduce::none) {
                             for (int k = 0; k < 4; ++k) corner[k] = g[(n * 4 + k) * cells + at];
                           } else {
                             cell.determinants(corner);
                             spread(reduce, g[n * cells + at], corner);
                           }
                         });
    });
  });
  return grad_displacement;
}

}  // namespace
}  // namespace diffreg::jacobian_determinant

STABLE_TORCH_LIBRARY_FRAGMENT(diffreg, library) {
  library.def("jacobian_determinant(Tensor displacement, str reduce) -> Tensor");
  library.def(
      "jacobian_determinant_backward(Tensor gradient, Tensor displacement, str reduce) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("jacobian_determinant", TORCH_BOX(&diffreg::jacobian_determinant::forward));
  library.impl("jacobian_determinant_backward",
               TORCH_BOX(&diffreg::jacobian_determinant::backward));
}
