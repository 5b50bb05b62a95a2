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

// Calls run(variant) with the variant as a type.
template <typename Run>
void dispatch_variant(Variant variant, const Run& run) {
  dispatch_value<Variant::pls, Variant::smooth, Variant::ngf>(variant, run);
}

template <int D, typename T, Variant variant>
struct Voxel {
  T A, B, G, Q, slope;  // slope = dQ/dG

  DIFFREG_HD Voxel(const T* g, const T* h, T eps_g, T eps_h) {
    T gg = g[0] * g[0], hh = h[0] * h[0], gh = g[0] * h[0];
    DIFFREG_UNROLL
    for (int k = 1; k < D; ++k) {
      gg += g[k] * g[k];
      hh += h[k] * h[k];
      gh += g[k] * h[k];
    }
    A = gg + eps_g * eps_g;
    B = hh + eps_h * eps_h;
    G = gh;
    const T floor = variant == Variant::ngf ? T(0) : eps_g * eps_h;
    if constexpr (variant == Variant::pls) {
      const T root = std::abs(G) + floor;
      Q = root * root;
      slope = G == 0 ? T(0) : std::copysign(2 * root, G);
    } else {
      Q = G * G + floor * floor;
      slope = 2 * G;
    }
  }

  // Two level sets that cannot be told from rounding count as parallel.
  DIFFREG_HD bool vanishes() const { return A * B == 0; }

  DIFFREG_HD T ratio() const { return quotient(Q, A * B); }

  DIFFREG_HD T value() const { return vanishes() ? T(0) : 1 - ratio(); }

  // df/dg = -dQ/dG h / (A B) + 2 Q g / (A^2 B)
  DIFFREG_HD T derivative(T g, T h) const {
    // Each factor is inverted by itself: the inverse of their product may be infinite.
    const T by_own = quotient(T(1), A), by_other = quotient(T(1), B);
    return vanishes() ? T(0) : 2 * ratio() * (by_own * g) - (slope * by_own) * (by_other * h);
  }
};

}  // namespace diffreg::parallel_level_sets
