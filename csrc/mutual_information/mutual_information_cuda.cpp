// CUDA driver of diffreg::mutual_information and diffreg::mutual_information_backward.
#include "mutual_information_cuda.h"

#include "../common/cuda_driver.h"
#include "arguments.h"

namespace diffreg::mutual_information {
namespace {

using namespace diffreg::cuda;

// The inputs, checked and contiguous.
struct Inputs {
  Tensor warped, fixed;
  std::optional<Tensor> mask, moving;
  Problem problem;

  Inputs(const Device& device, const Tensor& warped_image, const Tensor& fixed_image, int64_t bins,
         const std::optional<Tensor>& weights, const std::optional<Tensor>& moving_image)
      : warped(warped_image), problem{0, 0, 0, 0, 0, Shape(bins)} {
    check_image(device, "warped", warped_image);
    fixed =
        checked(device, "fixed", fixed_image, sizes_of(warped_image), warped_image.scalar_type());
    mask = checked_mask(device, weights, warped_image);
    check_bins(bins);
    warped = torch::stable::contiguous(warped_image);
    problem.samples = warped.size(0);
    problem.channels = warped.size(1);
    problem.voxels = rows_of(warped) * width_of(warped);
    if (!moving_image) return;
    check_image(device, "moving", *moving_image);
    check_moving(*moving_image, warped);
    moving = torch::stable::contiguous(*moving_image);
    problem.moving_channels = moving->size(1);
    problem.moving_voxels = rows_of(*moving) * width_of(*moving);
  }

  template <typename S>
  Images<S> images() const {
    return {data<S>(warped), data<S>(fixed), data_or_null<Arithmetic<S>>(mask),
            data_or_null<S>(moving)};
  }
};

// Histograms and ranges go to the backward pass, which then goes over the images once.
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& warped, const Tensor& fixed, int64_t bins,
                                           std::optional<Tensor> mask,
                                           std::optional<Tensor> moving) {
  const Device device(warped);
  const Inputs in(device, warped, fixed, bins, mask, moving);
  const int64_t N = in.problem.samples;
  const Shape& shape = in.problem.shape;
  Tensor value = new_scalars(in.warped);
  Tensor histograms =
      torch::stable::new_empty(in.warped, {N, shape.rows, shape.columns}, ScalarType::Double);
  Tensor ranges = torch::stable::new_empty(in.warped, {N, kRanges}, ScalarType::Double);
  if (warped.numel() == 0) {
    torch::stable::zero_(ranges);  // and 1 for the extents, as where nothing counts
    for (int64_t extent : {1, 3}) {
      Tensor of_nothing = torch::stable::narrow(ranges, 1, extent, 1);
      torch::stable::fill_(of_nothing, 1);
    }
    return {torch::stable::zero_(value), torch::stable::zero_(histograms), ranges};
  }
  dispatch_storage("warped", in.warped, [&](auto zero) {
    using S = decltype(zero);
    Tensor scratch = workspace(in.warped, forward_doubles(in.problem));
    launch_forward(in.problem, in.images<S>(), output<double>(scratch),
                   output<Arithmetic<S>>(value), output<double>(histograms), output<double>(ranges),
                   device.stream());
  });
  return {value, histograms, ranges};
}

Tensor backward(const Tensor& gradient, const Tensor& histograms, const Tensor& ranges,
                const Tensor& warped, const Tensor& fixed, int64_t bins, std::optional<Tensor> mask,
                std::optional<Tensor> moving) {
  const Device device(warped);
  const Inputs in(device, warped, fixed, bins, mask, moving);
  const int64_t N = in.problem.samples;
  const Shape& shape = in.problem.shape;
  const Tensor upstream = checked_scalars(device, "gradient", gradient, warped);
  const Tensor counts =
      checked(device, "histograms", histograms, {N, shape.rows, shape.columns}, ScalarType::Double);
  const Tensor limits = checked(device, "ranges", ranges, {N, kRanges}, ScalarType::Double);
  Tensor grad_warped = gradient_like(in.warped, true);
  if (warped.numel() == 0) return grad_warped;
  dispatch_storage("warped", in.warped, [&](auto zero) {
    using S = decltype(zero);
    Tensor scratch = workspace(in.warped, backward_doubles(in.problem));
    launch_backward(in.problem, in.images<S>(), data<Arithmetic<S>>(upstream), data<double>(counts),
                    data<double>(limits), output<double>(scratch), output<S>(grad_warped),
                    device.stream());
  });
  return grad_warped;
}

}  // namespace
}  // namespace diffreg::mutual_information

DIFFREG_CUDA_LIBRARY(library) {
  library.impl("mutual_information", TORCH_BOX(&diffreg::mutual_information::forward));
  library.impl("mutual_information_backward", TORCH_BOX(&diffreg::mutual_information::backward));
}
