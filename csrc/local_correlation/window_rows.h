// CPU only: the measure and its gradient to one of the images, row by row.
#pragma once

#include <vector>

#include "../common/box_rows.h"
#include "../common/image_gradient.h"
#include "../common/mask.h"
#include "local_correlation.h"

namespace diffreg::local_correlation {

// A window reaches no further than the image, however large it was asked for.
template <int D>
int64_t radius_of(int64_t window, const Grid<D>& grid) {
  return std::min(window / 2, *std::max_element(grid.size, grid.size + D));
}

// A strip: ranges of the leading axes. Axis D - 2 is cut into equal parts, long enough that the
// rows they share are few; in 3-D a strip has all of axis 0.
template <int D>
struct WindowStrips {
  Grid<D> grid;
  int64_t parts;

  WindowStrips(const Grid<D>& grid, int64_t radius)
      : grid(grid), parts(strip_count(grid.size[D - 2], std::max<int64_t>(16 * radius, 32))) {}

  Range part(int64_t strip) const {
    const int64_t size = grid.size[D - 2];
    return {size * strip / parts, size * (strip + 1) / parts};
  }
  Range outer(int64_t strip) const { return D == 2 ? part(strip) : Range{0, grid.size[0]}; }
  Range inner(int64_t strip) const { return D == 2 ? Range{0, 1} : part(strip); }

  // The row in raster order.
  int64_t row(int64_t outer, int64_t inner) const { return outer * grid.stride[0] + inner; }
};

// `own` is the image that the gradient goes to, `other` the one beside it.
template <int D, typename T>
class WindowRows {
 public:
  WindowRows(const Channel<D, T>& own, const Channel<D, T>& other, int64_t radius,
             const WindowStrips<D>& strips, int64_t strip, bool with_gradient)
      : own_(own),
        other_(other),
        radius_(radius),
        strips_(strips),
        outer_(strips.outer(strip)),
        inner_(strips.inner(strip)),
        wider_(D == 2 ? inner_ : inner_.widened(radius, own.grid.size[D == 2 ? 0 : 1])),
        per_column_(own.grid.width),
        moments_(own.grid.size, radius, with_gradient ? wider_ : inner_),
        parts_(own.grid.size, radius, inner_),
        slots_(std::min(2 * radius + 2, own.grid.size[0])),
        terms_(with_gradient ? slots_ * (wider_.end - wider_.first) * kParts * own.grid.width : 0),
        zeros_(kParts * own.grid.width) {
    for (int64_t x = 0; x < own.grid.width; ++x) {
      per_column_[x] = 1 / double(window_count(x, radius, own.grid.width));
    }
  }

  // Sum of the weighted measure over the strip; weights(row) gives the row of weights, or null.
  template <typename Weights>
  double value(const Weights& weights) {
    double sum = 0;
    for (int64_t outer = outer_.first; outer < outer_.end; ++outer) {
      move_moments(outer);
      for (int64_t inner = inner_.first; inner < inner_.end; ++inner) {
        for_windows(
            outer, inner, weights(strips_.row(outer, inner)),
            [](int64_t, double weight, const Window& here)
                DIFFREG_INLINE_LAMBDA { return weight * counted(here.value(), weight); },
            sum);
      }
    }
    return sum;
  }

  // Adds factor times the gradient of the weighted sum to the strip's rows of `gradient` (*S);
  // returns the sum over them.
  template <typename Weights>
  double add_gradient(double factor, const Weights& weights, T* gradient) {
    double sum = 0;
    int64_t next = std::max<int64_t>(outer_.first - radius_, 0);
    for (int64_t outer = outer_.first; outer < outer_.end; ++outer) {
      for (; next <= std::min(outer + radius_, own_.grid.size[0] - 1); ++next) {
        sum += evaluate(next, factor, weights);
      }
      parts_.move_to(outer, [&](int64_t enters, int64_t leaves, int64_t inner, double* sums) {
        const T *in = terms_at(enters, inner), *out = terms_at(leaves, inner);
#pragma GCC ivdep
        for (int64_t k = 0; k < kParts * own_.grid.width; ++k) {
          sums[k] += double(in[k]) - double(out[k]);
        }
      });
      for (int64_t inner = inner_.first; inner < inner_.end; ++inner) {
        parts_.sum_row(inner);
        add_to_row(strips_.row(outer, inner), gradient);
      }
    }
    return sum;
  }

 private:
  static constexpr int kParts = 3;

  // What the windows centred on a row give to each of their voxels, (kParts, W).
  T* terms_at(int64_t outer, int64_t inner) {
    if (outer == RunningWindow::kNothing) return zeros_.data();
    const int64_t count = wider_.end - wider_.first;
    const int64_t at = outer % slots_ * count + (inner - wider_.first);
    return &terms_[at * kParts * own_.grid.width];
  }

  const T* row_at(const Channel<D, T>& image, int64_t outer, int64_t inner) const {
    if (outer == RunningWindow::kNothing) return zeros_.data();
    return image.row(strips_.row(outer, inner));
  }

  void move_moments(int64_t outer) {
    const int64_t W = own_.grid.width;
    moments_.move_to(outer, [&](int64_t enters, int64_t leaves, int64_t inner, double* sums) {
      const T *own_in = row_at(own_, enters, inner), *other_in = row_at(other_, enters, inner);
      const T *own_out = row_at(own_, leaves, inner), *other_out = row_at(other_, leaves, inner);
#pragma GCC ivdep
      for (int64_t x = 0; x < W; ++x) {  // hot: moments
        double in[kTerms], out[kTerms];
        image_terms(own_in[x], other_in[x], in);
        image_terms(own_out[x], other_out[x], out);
        for (int k = 0; k < kTerms; ++k) sums[k * W + x] += in[k] - out[k];
      }
    });
  }

  // sum += term(x, weight, window) over the windows centred on a row.
  template <typename Term>
  void for_windows(int64_t outer, int64_t inner, const T* weights, const Term& term, double& sum) {
    moments_.sum_row(inner);
    double per_row = 1 / double(window_count(outer, radius_, own_.grid.size[0]));
    if (D == 3) per_row /= double(window_count(inner, radius_, own_.grid.size[1]));
    const double *s0 = moments_.sum(0), *s1 = moments_.sum(1), *s2 = moments_.sum(2);
    const double *s3 = moments_.sum(3), *s4 = moments_.sum(4);
    with_weights(weights, [&](const auto& weight) {
      sum += sum_row<double>(0, own_.grid.width, [&](int64_t x) DIFFREG_INLINE_LAMBDA {
        const double sums[] = {s0[x], s1[x], s2[x], s3[x], s4[x]};
        return term(x, double(weight(x)), Window(sums, per_row * per_column_[x]));
      });
    });
  }

  // The terms of the windows centred on the rows of a slice; the measure over those of the strip.
  template <typename Weights>
  double evaluate(int64_t outer, double factor, const Weights& weights) {
    const int64_t W = own_.grid.width;
    double counting = 0;
    move_moments(outer);
    for (int64_t inner = wider_.first; inner < wider_.end; ++inner) {
      T *cross = terms_at(outer, inner), *by_own = cross + W, *rest = by_own + W;
      double sum = 0;
      for_windows(
          outer, inner, weights(strips_.row(outer, inner)),
          [&](int64_t x, double weight, const Window& here) DIFFREG_INLINE_LAMBDA {
            double terms[kParts];
            here.gradient_terms(factor * weight, terms[0], terms[1], terms[2]);
            cross[x] = static_cast<T>(counted(terms[0], weight));
            by_own[x] = static_cast<T>(counted(terms[1], weight));
            rest[x] = static_cast<T>(counted(terms[2], weight));
            return weight * counted(here.value(), weight);
          },
          sum);
      const bool owned = outer >= outer_.first && outer < outer_.end && inner >= inner_.first &&
                         inner < inner_.end;
      if (owned) counting += sum;
    }
    return counting;
  }

  void add_to_row(int64_t row, T* gradient) const {
    const T *own = own_.row(row), *other = other_.row(row);
    const double *cross = parts_.sum(0), *by_own = parts_.sum(1), *rest = parts_.sum(2);
    T* out = gradient + row * own_.grid.width;
#pragma GCC ivdep
    for (int64_t x = 0; x < own_.grid.width; ++x) {
      out[x] += static_cast<T>(
          gradient_at(cross[x], by_own[x], rest[x], double(own[x]), double(other[x])));
    }
  }

  Channel<D, T> own_, other_;
  int64_t radius_;
  WindowStrips<D> strips_;
  Range outer_, inner_, wider_;  // of axes 0 and 1; wider: with the rows that reach into the strip
  std::vector<double> per_column_;  // 1 / columns of the window around x
  BoxRows<D, kTerms> moments_;
  BoxRows<D, kParts> parts_;
  int64_t slots_;         // slices of terms that are kept
  std::vector<T> terms_;  // (slots, rows of axis 1, kParts, W); rounded to T, as they are taken out
  std::vector<T> zeros_;  // a row of what is not there
};

}  // namespace diffreg::local_correlation
