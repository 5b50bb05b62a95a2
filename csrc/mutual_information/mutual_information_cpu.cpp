// Schema and CPU driver of diffreg::mutual_information and diffreg::mutual_information_backward.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "../common/mask.h"
#include "mutual_information.h"

namespace diffreg::mutual_information {
namespace {

constexpr int64_t kRanges = 4;  // low and extent of the warped, low and extent of the fixed image

void check(const Tensor& warped, const Tensor& fixed, int64_t bins,
           const std::optional<Tensor>& moving) {
  check_image("warped", warped);
  check_shape("fixed", fixed, sizes_of(warped));
  check_dtype("fixed", fixed, warped.scalar_type());
  STD_TORCH_CHECK(kFewestBins <= bins && bins <= kMostBins, "bins must be at least ", kFewestBins,
                  " and at most ", kMostBins, ", got ", bins);
  if (!moving) return;
  check_image("moving", *moving);
  check_dtype("moving", *moving, warped.scalar_type());
  STD_TORCH_CHECK(moving->size(0) == warped.size(0), "moving must have ", warped.size(0),
                  " samples, got ", shape_of(*moving));
}

// The joint histogram of a sample: a row for each box of the fixed image, which needs no bins at
// the ends, a column for each bin of the warped image.
struct Shape {
  int64_t rows, columns;

  explicit Shape(int64_t bins) : rows(bins - 2 * kPadding), columns(bins) {}
  int64_t size() const { return rows * columns; }
  // A strip has a histogram of its own, of half a byte a voxel or less.
  int64_t strip_voxels() const { return std::max(kVoxelsPerThread, 16 * columns * columns); }
};

// Calls run(n, strip, voxels, first voxel in the tensor, weights of these or null) for chunks of
// the strips of every sample: strips are of voxels, in all channels.
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

  Range<T> range() const {
    if (low > high) return {0, 1};  // nothing counts
    return {low, high > low ? high - low : 1};
  }
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

// A histogram that is being counted: the four taps of each cell stand side by side, a copy of their
// own for each, so that a voxel that meets the cell of the last one finds its sums where that has
// left them, and none waits for a part of what another has written.
class Cells {
 public:
  explicit Cells(const Shape& shape)
      : shape_(shape), cells_(shape.rows), sums_(shape.rows * shape.rows * kTaps) {}

  template <typename T, typename Weight>
  void add(const T* warped, const T* fixed, int64_t count, const Weight& weight,
           Range<T> of_warped, Range<T> of_fixed) {
    const int32_t cells = static_cast<int32_t>(cells_);
    int32_t at[kChunk], unknown = 0;
    T taps[kChunk][kTaps];
    for (int64_t x = 0; x < count; ++x) {
      const T m = weight(x), w = counted(warped[x], m), r = counted(fixed[x], m);
      const Place<T> place = place_of(w, of_warped, cells);
      at[x] = place_of(r, of_fixed, cells).cell * cells + place.cell;
      cubic_window(place.fraction, m, taps[x]);
      unknown |= (w - w != 0) | (r - r != 0);
    }
    for (int64_t x = 0; x < count; ++x) {
      double* sums = &sums_[kTaps * at[x]];
#pragma GCC unroll 1
#pragma GCC ivdep
      for (int32_t k = 0; k < kTaps; ++k) sums[k] += taps[x][k];
    }
    if (unknown) sums_[0] = std::numeric_limits<double>::quiet_NaN();
  }

  void add_to(double* histogram) const {
    const double* sums = sums_.data();
    for (int64_t row = 0; row < shape_.rows; ++row, histogram += shape_.columns) {
      for (int64_t cell = 0; cell < cells_; ++cell, sums += kTaps) {
        for (int32_t k = 0; k < kTaps; ++k) histogram[kPadding - 1 + cell + k] += sums[k];
      }
    }
  }

 private:
  Shape shape_;
  int64_t cells_;
  std::vector<double> sums_;
};

// Joint histograms (N, rows, columns); NaN where a value that counts is not finite.
template <typename T>
void count(const Tensor& warped, const Tensor& fixed, const Mask<T>& mask, const Shape& shape,
           const std::vector<Range<T>>& of_warped, const std::vector<Range<T>>& of_fixed,
           double* histograms) {
  const int64_t N = warped.size(0), voxels = rows_of(warped) * width_of(warped);
  const int64_t strips = strip_count(voxels, shape.strip_voxels());
  const T *w = warped.const_data_ptr<T>(), *r = fixed.const_data_ptr<T>();
  std::vector<double> parts(N * strips * shape.size());
  const auto run_strip = [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
    Cells cells(shape);
    for_chunks<T>(warped, mask, n, first, end, [&](int64_t count, int64_t at, const T* weights) {
      with_weights(weights, [&](const auto& weight) {
        cells.add(w + at, r + at, count, weight, of_warped[n], of_fixed[n]);
      });
    });
    cells.add_to(&parts[(n * strips + strip) * shape.size()]);
  };
  for_each_strip(N, voxels, warped.size(1), run_strip, shape.strip_voxels());
  std::fill_n(histograms, N * shape.size(), 0);
  for (int64_t n = 0; n < N; ++n) {
    double* whole = histograms + n * shape.size();
    for (int64_t strip = 0; strip < strips; ++strip) {
      const double* part = &parts[(n * strips + strip) * shape.size()];
      for (int64_t k = 0; k < shape.size(); ++k) whole[k] += part[k];
    }
  }
}

// A joint histogram and its sums.
class Joint {
 public:
  Joint(const Shape& shape, const double* counts)
      : shape_(shape), counts_(counts), of_rows_(shape.rows), of_columns_(shape.columns) {
    for (int64_t row = 0; row < shape_.rows; ++row) {
      for (int64_t column = 0; column < shape_.columns; ++column) {
        of_rows_[row] += at(row, column);
        of_columns_[column] += at(row, column);
      }
      total_ += of_rows_[row];
    }
  }

  // sum_ab p_ab ln(p_a p_b / p_ab); 0 ln 0 = 0.
  double value() const {
    double sum = 0;
    for (int64_t row = 0; row < shape_.rows; ++row) {
      const double share = of_rows_[row] / total_;
      for (int64_t column = 0; column < shape_.columns; ++column) {
        const double count = at(row, column);
        if (count != 0) sum += count * std::log(of_columns_[column] / count * share);
      }
    }
    return sum == 0 ? 0 : sum / total_;
  }

  // Steps along the columns of the derivative to a count, ln(p_a / p_ab) but for what a row has in
  // common: (rows, columns), the last column unused.
  template <typename T>
  std::vector<T> steps() const {
    std::vector<T> steps(shape_.size());
    const auto slope = [&](int64_t row, int64_t column) {
      const double count = at(row, column);
      return count == 0 ? 0 : std::log(of_columns_[column] / count);
    };
    for (int64_t row = 0; row < shape_.rows; ++row) {
      for (int64_t column = 0; column + 1 < shape_.columns; ++column) {
        steps[row * shape_.columns + column] =
            static_cast<T>(slope(row, column + 1) - slope(row, column));
      }
    }
    return steps;
  }

  double per_weight() const { return total_ == 0 ? 0 : 1 / total_; }

 private:
  double at(int64_t row, int64_t column) const { return counts_[row * shape_.columns + column]; }

  Shape shape_;
  const double* counts_;  // (rows, columns)
  std::vector<double> of_rows_, of_columns_;
  double total_ = 0;
};

// The gradient of a chunk: `factor` times the weight times the slope of the window through the steps
// of a row. First the places, then what is read there: the choices of the one would make the reads of
// the other conditional, and neither would be vectorised.
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
  std::vector<double> per_weight;
  for (int64_t n = 0; n < N; ++n) {
    const Joint joint(shape, histograms + n * shape.size());
    steps.push_back(joint.steps<T>());
    per_weight.push_back(joint.per_weight());
  }
  const auto range_of = [&](int64_t n, int64_t k) -> Range<T> {
    const double* range = ranges + n * kRanges + 2 * k;
    return {static_cast<T>(range[0]), static_cast<T>(range[1])};
  };
  const auto run_strip = [&](int64_t n, int64_t, int64_t first, int64_t end) {
    const Range<T> of_warped = range_of(n, 0), of_fixed = range_of(n, 1);
    const double bins_per_unit = shape.rows / static_cast<double>(of_warped.extent);
    const T factor = static_cast<T>(upstream[n] * per_weight[n] * bins_per_unit);
    for_chunks<T>(warped, mask, n, first, end, [&](int64_t count, int64_t at, const T* weights) {
      with_weights(weights, [&](const auto& weight) {
        fill_chunk(w + at, r + at, count, weight, of_warped, of_fixed, shape, steps[n].data(),
                   factor, out + at);
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

STABLE_TORCH_LIBRARY_FRAGMENT(diffreg, library) {
  library.def(
      "mutual_information(Tensor warped, Tensor fixed, int bins, Tensor? mask, Tensor? moving) -> "
      "(Tensor, Tensor, Tensor)");
  library.def(
      "mutual_information_backward(Tensor gradient, Tensor histograms, Tensor ranges, "
      "Tensor warped, Tensor fixed, int bins, Tensor? mask, Tensor? moving) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  library.impl("mutual_information", TORCH_BOX(&diffreg::mutual_information::forward));
  library.impl("mutual_information_backward", TORCH_BOX(&diffreg::mutual_information::backward));
}
