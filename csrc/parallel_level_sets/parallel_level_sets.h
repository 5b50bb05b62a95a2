// f = 1 - Q / (A B) at one voxel, g = grad W, h = grad R, A = |g|^2 + eW^2, B = |h|^2 + eR^2,
// G = <g, h>; pls: Q = (|G| + eW eR)^2, smooth: Q = G^2 + (eW eR)^2, ngf: Q = G^2.
// Exchanging (g, eW) and (h, eR) gives the other gradient.
#pragma once

#include <cmath>

#include "../common/host_device.h"
#include "../common/options.h"

namespace diffreg::parallel_level_sets {

enum class Variant { pls, smooth, ngf };
constexpr Named<Variant> kVariants[] = {
    {"pls", Variant::pls}, {"smooth", Variant::smooth}, {"ngf", Variant::ngf}};

// What the scales and the variant come to: Q = (|G| + floor)^2 + rest.
template <typename T>
struct Scales {
  T g_squared, h_squared, floor, rest;

  DIFFREG_HD Scales(Variant variant, T eps_g, T eps_h)
      : g_squared(eps_g * eps_g),
        h_squared(eps_h * eps_h),
        floor(variant == Variant::pls ? eps_g * eps_h : T(0)),
        rest(variant == Variant::smooth ? (eps_g * eps_h) * (eps_g * eps_h) : T(0)) {}
};

template <int D, typename T>
struct Voxel {
  T A, B, G, root, Q;

  DIFFREG_HD Voxel(const T* g, const T* h, const Scales<T>& scales)
      : A(scales.g_squared), B(scales.h_squared), G(g[0] * h[0]) {
    DIFFREG_UNROLL
    for (int k = 0; k < D; ++k) {
      A += g[k] * g[k];
      B += h[k] * h[k];
      if (k > 0) G += g[k] * h[k];
    }
    root = std::abs(G) + scales.floor;
    Q = root * root + scales.rest;
  }

  // 1 / (A B), or 0: two level sets that cannot be told from rounding count as parallel.
  DIFFREG_HD T inverse() const {
    const T product = A * B;
    return product < kSmallestNormal<T> ? T(0) : plain_quotient(T(1), product);
  }

  DIFFREG_HD T value() const { return (A * B - Q) * inverse(); }

  // df/dg = own g - other h, times a factor: own = 2 Q / (A^2 B), other = dQ/dG / (A B).
  struct Slopes {
    T own, other;
    DIFFREG_HD T along(T g, T h) const { return own * g - other * h; }
  };
  DIFFREG_HD Slopes slopes(T factor) const {
    const T by = inverse(), twice = 2 * factor * by;
    return {(Q * by) * (B * twice), G == 0 ? T(0) : std::copysign(root, G) * twice};
  }
};

}  // namespace diffreg::parallel_level_sets
