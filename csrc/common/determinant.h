// Jacobian determinants of phi = id + u at the corners of one cell, and their adjoint.
// 2-D, vertices P_ab = phi(i+a, j+b): e_b = P_1b - P_0b, f_a = P_a1 - P_a0, J_ab = e_b x f_a.
#pragma once

#include "host_device.h"

namespace diffreg {

// Edges are a unit vector plus a difference of u: absolute positions would cost digits.
template <typename T>
struct Cell {
  T e0[2], e1[2], f0[2], f1[2];

  // u_ab is the displacement at vertex (a, b), component by component.
  DIFFREG_HD Cell(const T* u00, const T* u10, const T* u01, const T* u11) {
    for (int c = 0; c < 2; ++c) {
      const T along0 = c == 0 ? T(1) : T(0), along1 = c == 1 ? T(1) : T(0);
      e0[c] = along0 + (u10[c] - u00[c]);
      e1[c] = along0 + (u11[c] - u01[c]);
      f0[c] = along1 + (u01[c] - u00[c]);
      f1[c] = along1 + (u11[c] - u10[c]);
    }
  }

  // Corner a + 2b, the first axis fastest.
  DIFFREG_HD void determinants(T* corner) const {
    corner[0] = e0[0] * f0[1] - e0[1] * f0[0];
    corner[1] = e0[0] * f1[1] - e0[1] * f1[0];
    corner[2] = e1[0] * f0[1] - e1[1] * f0[0];
    corner[3] = e1[0] * f1[1] - e1[1] * f1[0];
  }

  // Gradient to the four vertices, given the gradient to the four corners' determinants:
  // d(a x b)/da = (b1, -b0) and d(a x b)/db = (-a1, a0).
  DIFFREG_HD void adjoint(const T* corner, T* g00, T* g10, T* g01, T* g11) const {
    for (int c = 0; c < 2; ++c) {
      const int other = 1 - c;
      const T sign = c == 0 ? T(1) : T(-1);
      const T to_e0 = sign * (corner[0] * f0[other] + corner[1] * f1[other]);
      const T to_e1 = sign * (corner[2] * f0[other] + corner[3] * f1[other]);
      const T to_f0 = -sign * (corner[0] * e0[other] + corner[2] * e1[other]);
      const T to_f1 = -sign * (corner[1] * e0[other] + corner[3] * e1[other]);
      g00[c] = -to_e0 - to_f0;
      g10[c] = to_e0 - to_f1;
      g01[c] = to_f0 - to_e1;
      g11[c] = to_e1 + to_f1;
    }
  }
};

}  // namespace diffreg
