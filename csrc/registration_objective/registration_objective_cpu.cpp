// Schema and CPU driver of diffreg::registration_objective and
// diffreg::registration_objective_backward: one sweep over the rows of each strip, in which the
// warped image, its derivatives and the measures' slopes live for some rows only.
#include <torch/csrc/stable/library.h>

#include <limits>

#include "../deformation_energy/energy_rows.h"
#include "arguments.h"
#include "measure_rows.h"

namespace diffreg::registration_objective {
namespace {

using deformation_energy::Coefficients;
using deformation_energy::EnergyGradient;
using deformation_energy::PenaltyKind;
using parallel_level_sets::LevelSetRows;
using parallel_level_sets::Variant;

constexpr int64_t kWindow = 9;     // of lncc
constexpr int64_t kShortest = 32;  // rows of a strip, so that those it shares are few
constexpr int kSums = kMeasures + 3;

// The arguments, checked, and their tensors contiguous.
struct Inputs : Arguments {
  warp::Padding padding_mode;
  PenaltyKind penalty_kind;

  explicit Inputs(const Arguments& arguments)
      : Arguments(arguments), padding_mode(parse("padding", padding, warp::kPaddings)) {
    warp::check(moving, displacement);
    check_dtype("displacement", displacement, moving.scalar_type());
    check_dtype("fixed", fixed, moving.scalar_type());
    check_shape("fixed", fixed,
                {moving.size(0), moving.size(1), displacement.size(2), displacement.size(3)});
    check_lengths(arguments);
    penalty_kind = parse("penalty", penalty, deformation_energy::kPenalties);
    eps_moving = scale("eps_moving", eps_moving);
    eps_fixed = scale("eps_fixed", eps_fixed);
    moving = torch::stable::contiguous(moving);
    fixed = torch::stable::contiguous(fixed);
    displacement = torch::stable::contiguous(displacement);
  }

  bool uses(Measure measure) const { return mixture[measure] != 0; }
  int64_t radius() const {
    return local_correlation::radius_of(kWindow, fixed.size(2), fixed.size(3));
  }
  int64_t strip_rows() const {
    return uses(kLncc) ? local_correlation::strip_rows(radius()) : kShortest;
  }
  // Rows beside a strip whose warped image it needs.
  int64_t halo(bool gradient) const {
    int64_t rows = uses_level_sets(mixture) ? 1 : 0;
    if (uses(kLncc)) rows = std::max(rows, radius());
    return gradient ? 2 * rows : rows;
  }

 private:
  std::optional<Tensor> scale(const char* name, const std::optional<Tensor>& eps) const {
    STD_TORCH_CHECK(eps || !uses_level_sets(mixture), name, " is needed by the measure");
    if (!eps) return std::nullopt;
    check_shape(name, *eps, {moving.size(0)});
    check_dtype(name, *eps, moving.scalar_type());
    return torch::stable::contiguous(*eps);
  }
};

// The sweep for one floating type.
template <typename T>
class Sweep {
 public:
  // Without `measured` no similarity is computed.
  Sweep(const Inputs& inputs, bool measured)
      : inputs_(inputs),
        grids_(inputs.moving, inputs.displacement),
        weights_(inputs.mask, inputs.fixed),
        fixed_(measured ? weights_.read(inputs.fixed) : inputs.fixed),
        height_(grids_.to[0]),
        width_(grids_.to[1]),
        strips_(strip_count(height_, inputs.strip_rows())),
        moments_(grids_.samples),
        sums_(grids_.samples, strips_) {
    if (measured && inputs.uses(kNcc)) measure_moments();
  }

  // The energies and measures of all samples; their weighted gradient into `gradient` (N, D, H, W)
  // and the warped image into `warped` (N, C, H, W), where these are not null. Unless `valued`, a
  // similarity of weight 0 gives nothing, not even NaN.
  template <bool valued, typename Psi>
  void run(const Psi& psi, const std::vector<Weights>& weights, T* gradient, T* warped) {
    const Coefficients factor(height_, width_, inputs_.spacing.data());
    const auto run_strip = [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
      std::vector<Channel> channels;
      if (valued || weights[n].similarity != 0) {
        channels = channels_of(n, first, end, gradient != nullptr);
      }
      double* sums = sums_.at(n, strip);
      const Field<T> field{field_of(n), height_, width_};
      T* out = gradient ? gradient + n * D * height_ * width_ : nullptr;
      const deformation_energy::Slopes<T> slope(factor, weights[n].diffusion, weights[n].bending,
                                                weights[n].determinant);
      EnergyGradient<T, Psi::kKind> energies(field, slope, psi, out && slope.corner != 0,
                                             out ? first : 0);
      std::vector<T> to_warped(width_);
      for (int64_t y = first; y < end; ++y) {
        if (out) {
          T* const rows[D] = {out + y * width_, out + (height_ + y) * width_};
          energies.template row<valued>(y, rows, factor, sums + kMeasures);
          for (Channel& channel : channels) {
            add_gradient(channel, n, y, weights[n].similarity, to_warped, rows, sums);
          }
        } else {
          deformation_energy::add_row(field, factor, psi, y, sums + kMeasures);
          for (Channel& channel : channels) {
            for (auto& [measure, rows] : channel.measures) sums[measure] += rows->value(y);
          }
        }
        if (warped) keep(channels, n, y, warped);
      }
    };
    for_each_strip(grids_.samples, height_, width_, run_strip, inputs_.strip_rows());
  }

  double energy(int64_t n, int k) const { return sums_.total(n, kMeasures + k); }

  double similarity(int64_t n) const {
    double sum = 0;
    for (int k = 0; k < kMeasures; ++k) {
      if (!inputs_.uses(Measure(k))) continue;
      const double value = k == kNcc ? moments_[n].value() : sums_.total(n, k) * per_term(n);
      sum += inputs_.mixture[k] * value;
    }
    return sum;
  }

 private:
  struct Channel {
    std::unique_ptr<WarpedRows<T>> warped;
    std::vector<std::pair<Measure, std::unique_ptr<MeasureRows<T>>>> measures;
  };

  const T* field_of(int64_t n) const {
    return inputs_.displacement.template const_data_ptr<T>() + n * D * grids_.to_voxels;
  }
  double per_term(int64_t n) const {
    return grids_.channels == 0 ? 0 : weights_.per_voxel(n) / double(grids_.channels);
  }

  std::unique_ptr<WarpedRows<T>> warped_rows(int64_t n, int64_t c, bool slopes, int64_t first,
                                             int64_t halo) const {
    const T* moving = inputs_.moving.template const_data_ptr<T>();
    return std::make_unique<WarpedRows<T>>(
        grids_, inputs_.padding_mode, moving + (n * grids_.channels + c) * grids_.from_voxels,
        field_of(n), weights_.row(n, 0), slopes, std::max<int64_t>(first - halo, 0), 2 * halo + 2);
  }
  Plane<T> fixed_plane(int64_t n, int64_t c) const {
    const T* fixed = fixed_.template const_data_ptr<T>();
    return {fixed + (n * grids_.channels + c) * grids_.to_voxels, height_, width_};
  }

  // A pass of its own: the gradient needs the moments of the whole image.
  void measure_moments() {
    std::vector<correlation::PartMoments> parts(grids_.samples * strips_);
    const auto run_strip = [&](int64_t n, int64_t strip, int64_t first, int64_t end) {
      for (int64_t c = 0; c < grids_.channels; ++c) {
        const auto warped = warped_rows(n, c, false, first, 0);
        const Plane<T> fixed = fixed_plane(n, c);
        for (int64_t y = first; y < end; ++y) {
          correlation::add_row(warped->row(y), fixed.row(y), weights_.row(n, y), width_,
                               parts[n * strips_ + strip]);
        }
      }
    };
    for_each_strip(grids_.samples, height_, width_, run_strip, inputs_.strip_rows());
    for (int64_t n = 0; n < grids_.samples; ++n) {
      correlation::PartMoments whole;
      for (int64_t strip = 0; strip < strips_; ++strip) whole.add(parts[n * strips_ + strip]);
      moments_[n] = whole.moments(std::numeric_limits<T>::epsilon());
    }
  }

  std::vector<Channel> channels_of(int64_t n, int64_t first, int64_t end, bool slopes) const {
    std::vector<Channel> channels(grids_.channels);
    for (int64_t c = 0; c < grids_.channels; ++c) {
      Channel& channel = channels[c];
      channel.warped = warped_rows(n, c, slopes, first, inputs_.halo(slopes));
      const Plane<T> fixed = fixed_plane(n, c);
      const WeightRows<T> weights = [this, n](int64_t y) { return weights_.row(n, y); };
      WarpedRows<T>& warped = *channel.warped;
      const auto use = [&](Measure measure, const auto& make) {
        if (inputs_.uses(measure)) channel.measures.emplace_back(measure, make());
      };
      const auto level_sets = [&]<Variant variant>() {
        using Rows = LevelSetRows<T, variant, WarpedRows<T>>;
        return std::make_unique<SweptRows<T, Rows>>(
            weights, warped, fixed, inputs_.eps_moving->template const_data_ptr<T>()[n],
            inputs_.eps_fixed->template const_data_ptr<T>()[n], first, end);
      };
      // The one that reaches furthest comes first: the others find their rows in the ring.
      use(kLncc, [&] {
        using Rows = local_correlation::WindowRows<T, WarpedRows<T>>;
        return std::make_unique<SweptRows<T, Rows>>(weights, warped, fixed, inputs_.radius(), first,
                                                    end);
      });
      use(kPls, [&] { return level_sets.template operator()<Variant::pls>(); });
      use(kSmoothPls, [&] { return level_sets.template operator()<Variant::smooth>(); });
      use(kNgf, [&] { return level_sets.template operator()<Variant::ngf>(); });
      use(kSsd, [&] { return std::make_unique<SquareRows<T>>(warped, fixed, weights); });
      use(kNcc, [&] {
        return std::make_unique<CorrelationRows<T>>(warped, fixed, weights, moments_[n]);
      });
    }
    return channels;
  }

  // Chain rule at row y: the measures' gradient to the warped image times its derivatives.
  void add_gradient(Channel& channel, int64_t n, int64_t y, double upstream,
                    std::vector<T>& to_warped, T* const* gradient, double* sums) const {
    std::fill(to_warped.begin(), to_warped.end(), T(0));
    for (auto& [measure, rows] : channel.measures) {
      const double factor = upstream * inputs_.mixture[measure];
      sums[measure] +=
          rows->add_gradient(y, measure == kNcc ? factor : factor * per_term(n), to_warped.data());
    }
    channel.warped->row(y);
    for (int k = 0; k < D; ++k) {
      const T* slope = channel.warped->slope(k, y);
      T* row = gradient[k];
      for (int64_t x = 0; x < width_; ++x) row[x] += to_warped[x] * slope[x];
    }
  }

  void keep(std::vector<Channel>& channels, int64_t n, int64_t y, T* warped) const {
    for (int64_t c = 0; c < grids_.channels; ++c) {
      std::copy_n(channels[c].warped->image(y), width_,
                  warped + (n * grids_.channels + c) * grids_.to_voxels + y * width_);
    }
  }

  const Inputs& inputs_;
  warp::Grids grids_;
  Mask<T> weights_;
  Tensor fixed_;  // as the measures read it
  int64_t height_, width_, strips_;
  std::vector<correlation::Moments> moments_;
  StripSums<kSums> sums_;
};

Outputs run_forward(const Arguments& arguments, bool need_gradient, bool need_warped) {
  const Inputs inputs(arguments);
  const std::vector<double>& weights = inputs.weights;
  const Tensor& u = inputs.displacement;
  const auto output = [&](const Tensor& like, bool need) {
    return need ? torch::stable::new_empty(like, like.sizes())
                : torch::stable::new_empty(like, {0});
  };
  Tensor terms[5];
  for (Tensor& term : terms) term = torch::stable::new_zeros(u, {u.size(0)});
  Tensor warped = output(inputs.fixed, need_warped), gradient = output(u, need_gradient);
  if (u.numel() == 0) {  // what correlation gives for images without voxels
    torch::stable::fill_(terms[1], inputs.mixture[kNcc]);
    torch::stable::fill_(terms[0], weights[0] * inputs.mixture[kNcc]);
    return {terms[0], terms[1], terms[2], terms[3], terms[4], warped, gradient};
  }
  dispatch_floating("displacement", u, [&](auto zero) {
    using T = decltype(zero);
    Sweep<T> sweep(inputs, true);
    const T threshold = static_cast<T>(inputs.threshold);
    with_penalty(inputs.penalty_kind, threshold, [&](const auto& psi) {
      const std::vector<Weights> all(u.size(0), {weights[0], weights[1], weights[2], weights[3]});
      sweep.template run<true>(psi, all, need_gradient ? gradient.mutable_data_ptr<T>() : nullptr,
                               need_warped ? warped.mutable_data_ptr<T>() : nullptr);
    });
    for (int64_t n = 0; n < u.size(0); ++n) {
      const double found[] = {sweep.similarity(n), sweep.energy(n, 0), sweep.energy(n, 1),
                              sweep.energy(n, 2)};
      double total = 0;
      for (int k = 0; k < 4; ++k) {
        terms[k + 1].mutable_data_ptr<T>()[n] = static_cast<T>(found[k]);
        total += weights[k] * found[k];
      }
      terms[0].mutable_data_ptr<T>()[n] = static_cast<T>(total);
    }
  });
  return {terms[0], terms[1], terms[2], terms[3], terms[4], warped, gradient};
}

// What each term's upstream gradient, where there is one, and the total's make of its factor.
template <typename T>
std::vector<Weights> upstream_weights(const UpstreamTensors& upstream,
                                      const std::vector<double>& weights, const Tensor& u) {
  const std::optional<Tensor> gradients[5] = {upstream.total, upstream.similarity,
                                              upstream.diffusion, upstream.bending,
                                              upstream.determinant};
  const int64_t N = u.size(0);
  std::vector<double> all[5];
  for (int k = 0; k < 5; ++k) {
    all[k].assign(N, 0);
    if (!gradients[k]) continue;
    check_shape("an upstream gradient", *gradients[k], {N});
    check_dtype("an upstream gradient", *gradients[k], u.scalar_type());
    const Tensor values = torch::stable::contiguous(*gradients[k]);
    std::copy_n(values.const_data_ptr<T>(), N, all[k].begin());
  }
  std::vector<Weights> found(N);
  for (int64_t n = 0; n < N; ++n) {
    const auto of = [&](int k) { return weights[k] * all[0][n] + all[k + 1][n]; };
    found[n] = {of(0), of(1), of(2), of(3)};
  }
  return found;
}

Tensor run_backward(const UpstreamTensors& gradients, const Arguments& arguments) {
  const Inputs inputs(arguments);
  const Tensor& u = inputs.displacement;
  Tensor gradient = torch::stable::new_empty(u, u.sizes());
  if (u.numel() == 0) return gradient;
  dispatch_floating("displacement", u, [&](auto zero) {
    using T = decltype(zero);
    Sweep<T> sweep(inputs, gradients.total || gradients.similarity);
    const auto upstream = upstream_weights<T>(gradients, inputs.weights, u);
    const T threshold = static_cast<T>(inputs.threshold);
    with_penalty(inputs.penalty_kind, threshold, [&](const auto& psi) {
      sweep.template run<false>(psi, upstream, gradient.mutable_data_ptr<T>(), nullptr);
    });
  });
  return gradient;
}

}  // namespace
}  // namespace diffreg::registration_objective

STABLE_TORCH_LIBRARY_FRAGMENT(diffreg, library) {
  library.def(
      "registration_objective(Tensor moving, Tensor fixed, Tensor displacement, "
      "Tensor? eps_moving, Tensor? eps_fixed, Tensor? mask, float[] mixture, float[] weights, "
      "str padding, float[] spacing, str penalty, float threshold, bool need_gradient, "
      "bool need_warped) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "registration_objective_backward(Tensor? grad_total, Tensor? grad_similarity, "
      "Tensor? grad_diffusion, Tensor? grad_bending, Tensor? grad_determinant, Tensor moving, "
      "Tensor fixed, Tensor displacement, Tensor? eps_moving, Tensor? eps_fixed, Tensor? mask, "
      "float[] mixture, float[] weights, str padding, float[] spacing, str penalty, "
      "float threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(diffreg, CPU, library) {
  using namespace diffreg::registration_objective;
  library.impl("registration_objective", TORCH_BOX(&forward<&run_forward>));
  library.impl("registration_objective_backward", TORCH_BOX(&backward<&run_backward>));
}
