// CPU driver of diffreg::mutual_information and diffreg::mutual_information_backward.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "../common/mask.h"
#include "arguments.h"
#include "joint_histogram.h"

namespace diffreg::mutual_information {
namespace {

void check(const Tensor& warped, const Tensor& fixed, int64_t bins,
           const std::optional<Tensor>& moving) {
  check_image("warped", warped);
  check_shape("fixed", fixed, sizes_of(warped));
  check_dtype("fixed", fixed, warped.scalar_type());
  check_bins(bins);
  if (!moving) return;
  check_image("moving", *moving);
  check_moving(*moving, warped);
}

// A strip has a histogram of its own, which takes half a byte a voxel or less.
int64_t strip_voxels(const Shape& shape) {
  return std::max(kVoxelsPerThread, 16 * shape.columns * shape.columns);
}

// Calls run(voxels, first in the tensor, weights of these or null) for chunks of the voxels
// first <= x < end of a sample, in every channel.
template <typename T, typename Run>
void for_chunks(const Tensor& image, const Mask<T>& mask, int64_t n, int64_t first, int64_t end,
                const Run& run) {
  const int64_t C = image.size(1), voxels = rows_of(image) * width_of(image);
  const T* weights = mask.row(n, 0);
  for (int64_t c = n * C; c < (n + 1) * C; ++c) {
    for (int64_t x = first; x < end; x += kChunk) {
      run(std::min(kChunk, end - x), c * voxels + x, weights ? weights + x : nullptr);
    }
  }
}

// The smallest and the largest of the finite intensities that count.
template <typename T>
struct Extremes {
  T low = std::numeric_limits<T>::infinity(), high = -std::numeric_limits<T>::infinity();

  void add(const Extremes& other) {
    low = std::min(low, other.low);
    high = std::max(high, other.high);
  }

  template <typename Weight>
  void add(const T* values, int64_t count, const Weight& weight) {
    T lows[kLanes], highs[kLanes];
    std::fill_n(lows, kLanes, low);
    std::fill_n(highs, kLanes, high);
    const auto take = [&](int64_t x, int64_t lane) {
      const T value = values[x];
      const int32_t unknown = (value - value != 0) | !(weight(x) > 0);
      const T low_or_none = unless_zero(!unknown, value, Extremes().low);
      const T high_or_none = unless_zero(!unknown, value, Extremes().high);
      lows[lane] = low_or_none < lows[lane] ? low_or_none : lows[lane];
      highs[lane] = high_or_none > highs[lane] ? high_or_none : highs[lane];
    };
    int64_t x = 0;
    for (; x + kLanes <= count; x += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) take(x + lane, lane);
    }
    for (int64_t lane = 0; x < count; ++x, ++lane) take(x, lane);
    low = *std::min_element(lows, lows + kLanes);
    high = *std::max_element(highs, highs + kLanes);
  }

  Range<T> range() const { return Range<T>::between(low, high); }
};

template <typename T>
std::vector<Range<T>> ranges_of(const Tensor& image, const Mask<T>& mask) {
  const int64_t N = image.size(0), voxels = rows_of(image) * width_of(image);
  const int64_t strips = strip_count(voxels, kVoxelsPerThread);
  const T* values = image.const_data_ptr<T>();
  std::vector<Extremes<T>> parts(N * strips);
  const auto run_strip = [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
    for_chunks<T>(image, mask, n, first, end, [&](int64_t count, int64_t at, const T* weights) {
      with_weights(weights, [&](const auto& weight) {
        parts[n * strips + strip].add(values + at, count, weight);
      });
    });
  };
  for_each_strip(N, voxels, image.size(1), run_strip, kVoxelsPerThread);
  std::vector<Range<T>> ranges;
  for (int64_t n = 0; n < N; ++n) {
    Extremes<T> whole;
    for (int64_t strip = 0; strip < strips; ++strip) whole.add(parts[n * strips + strip]);
    ranges.push_back(whole.range());
  }
  return ranges;
}

// Joint histograms (N, rows, columns); NaN where a value that counts is not finite.
template <typename T>
void count(const Tensor& warped, const Tensor& fixed, const Mask<T>& mask, const Shape& shape,
           const std::vector<Range<T>>& of_warped, const std::vector<Range<T>>& of_fixed,
           double* histograms) {
  const int64_t N = warped.size(0), voxels = rows_of(warped) * width_of(warped);
  const int64_t strips = strip_count(voxels, strip_voxels(shape));
  const T *w = warped.const_data_ptr<T>(), *r = fixed.const_data_ptr<T>();
  // The first strip of a sample counts in place.
  const int64_t more = std::max<int64_t>(strips - 1, 0);
  std::vector<double> parts(N * more * shape.size());
  std::fill_n(histograms, N * shape.size(), 0);
  const auto part = [&](int64_t n, int64_t strip) {
    if (strip == 0) return histograms + n * shape.size();
    return parts.data() + (n * more + strip - 1) * shape.size();
  };
  const auto run_strip = [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
    Cells cells(shape);
    for_chunks<T>(warped, mask, n, first, end, [&](int64_t count, int64_t at, const T* weights) {
      with_weights(weights, [&](const auto& weight) {
        cells.add(w + at, r + at, count, weight, of_warped[n], of_fixed[n]);
      });
    });
    cells.add_to(part(n, strip));
  };
  for_each_strip(N, voxels, warped.size(1), run_strip, strip_voxels(shape));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t strip = 1; strip < strips; ++strip) {
      for (int64_t k = 0; k < shape.size(); ++k) part(n, 0)[k] += part(n, strip)[k];
    }
  }
}

// The gradient of a chunk: `factor` times the weight times the slope of the window through the
// steps of a row. First the places, then what is read there: the choices of the one would make the
// reads of the other conditional, and neither would be vectorised.
template <typename T, typename Weight>
void fill_chunk(const T* warped, const T* fixed, int64_t count, const Weight& weight,
                Range<T> of_warped, Range<T> of_fixed, const Shape& shape, const T* steps, T factor,
                T* out) {
  const int32_t cells = static_cast<int32_t>(shape.rows);
  const int32_t columns = static_cast<int32_t>(shape.columns);
  int32_t at[kChunk];
  T fraction[kChunk], moves[kChunk];
  for (int64_t x = 0; x < count; ++x) {
    const T m = weight(x), w = counted(warped[x], m), r = counted(fixed[x], m);
    const Place<T> place = place_of(w, of_warped, cells);
    at[x] = place_of(r, of_fixed, cells).cell * columns + place.cell + kPadding - 1;
    fraction[x] = place.fraction;
    moves[x] = m * static_cast<T>(place.inside);
  }
#pragma GCC ivdep
  for (int64_t x = 0; x < count; ++x) {
    const T around[] = {steps[at[x]], steps[at[x] + 1], steps[at[x] + 2]};
    out[x] = moves[x] * counted(factor * cubic_slope(fraction[x], around), moves[x]);
  }
}

template <typename T>
void fill_gradient(const Tensor& warped, const Tensor& fixed, const Mask<T>& mask,
                   const Shape& shape, const T* upstream, const double* histograms,
                   const double* ranges, T* out) {
  const int64_t N = warped.size(0), voxels = rows_of(warped) * width_of(warped);
  const T *w = warped.const_data_ptr<T>(), *r = fixed.const_data_ptr<T>();
  std::vector<std::vector<T>> steps;
  std::vector<T> factors;
  for (int64_t n = 0; n < N; ++n) {
    const Joint joint(shape, histograms + n * shape.size());
    steps.push_back(joint.steps<T>());
    const double extent = ranges[n * kRanges + 1];
    factors.push_back(static_cast<T>(slope_factor(upstream[n], joint.total(), shape.rows, extent)));
  }
  const auto range_of = [&](int64_t n, int64_t k) -> Range<T> {
    const double* range = ranges + n * kRanges + 2 * k;
    return {static_cast<T>(range[0]), static_cast<T>(range[1])};
  };
  const auto run_strip = [&](int64_t n, int64_t, int64_t first, int64_t end) {
    const Range<T> of_warped = range_of(n, 0), of_fixed = range_of(n, 1);
    for_chunks<T>(warped, mask, n, first, end, [&](int64_t count, int64_t at, const T* weights) {
      with_weights(weights, [&](const auto& weight) {
        fill_chunk(w + at, r + at, count, weight, of_warped, of_fixed, shape, steps[n].data(),
                   factors[n], out + at);
      });
    });
  };
  for_each_strip(N, voxels, warped.size(1), run_strip, kVoxelsPerThread);
}

// Histograms and ranges go to the backward pass, which then goes over the images once.
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& warped, const Tensor& fixed, int64_t bins,
                                           std::optional<Tensor> mask,
                                           std::optional<Tensor> moving) {
  check(warped, fixed, bins, moving);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const Shape shape(bins);
  const int64_t N = w.size(0);
  Tensor value = torch::stable::new_empty(w, {N});
  Tensor histograms =
      torch::stable::new_empty(w, {N, shape.rows, shape.columns}, ScalarType::Double);
  Tensor ranges = torch::stable::new_empty(w, {N, kRanges}, ScalarType::Double);
  dispatch_floating("warped", w, [&](auto zero) {
    using T = decltype(zero);
    const Mask<T> weights(mask, w);
    const auto of_fixed = ranges_of<T>(r, weights);
    const auto of_warped =
        moving ? ranges_of<T>(torch::stable::contiguous(*moving), Mask<T>(std::nullopt, *moving))
               : ranges_of<T>(w, weights);
    double* counts = histograms.mutable_data_ptr<double>();
    count<T>(w, r, weights, shape, of_warped, of_fixed, counts);
    for (int64_t n = 0; n < N; ++n) {
      value.mutable_data_ptr<T>()[n] =
          static_cast<T>(Joint(shape, counts + n * shape.size()).value());
      const double all[kRanges] = {of_warped[n].low, of_warped[n].extent, of_fixed[n].low,
                                   of_fixed[n].extent};
      std::copy_n(all, kRanges, ranges.mutable_data_ptr<double>() + n * kRanges);
    }
  });
  return {value, histograms, ranges};
}

Tensor backward(const Tensor& gradient, const Tensor& histograms, const Tensor& ranges,
                const Tensor& warped, const Tensor& fixed, int64_t bins, std::optional<Tensor> mask,
                std::optional<Tensor> moving) {
  check(warped, fixed, bins, moving);
  const Shape shape(bins);
  const int64_t N = warped.size(0);
  check_shape("gradient", gradient, {N});
  check_dtype("gradient", gradient, warped.scalar_type());
  check_shape("histograms", histograms, {N, shape.rows, shape.columns});
  check_dtype("histograms", histograms, ScalarType::Double);
  check_shape("ranges", ranges, {N, kRanges});
  check_dtype("ranges", ranges, ScalarType::Double);
  const Tensor w = torch::stable::contiguous(warped), r = torch::stable::contiguous(fixed);
  const Tensor upstream = torch::stable::contiguous(gradient);
  const Tensor counts = torch::stable::contiguous(histograms);
  const Tensor limits = torch::stable::contiguous(ranges);
  Tensor grad_warped = torch::stable::new_empty(w, w.sizes());
  dispatch_floating("warped", w, [&](auto zero) {
    using T = decltype(zero);
    fill_gradient<T>(w, r, Mask<T>(mask, w), shape, upstream.const_data_ptr<T>(),
                     counts.const_data_ptr<double>(), limits.const_data_ptr<double>(),
                     grad_warped.mutable_data_ptr<T>());
  });
  return grad_warped;
}

}  // namespace
}  // namespace diffreg::mutual_information

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("mutual_information", TORCH_BOX(&diffreg::mutual_information::forward));
  library.impl("mutual_information_backward", TORCH_BOX(&diffreg::mutual_information::backward));
}
