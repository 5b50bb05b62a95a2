// Derivative of an image along one axis and its adjoint, with a replicated border:
// g[i] = (I[min(i+1, n-1)] - I[max(i-1, 0)]) / 2.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace diffreg {

template <typename T>
DIFFREG_HD T central_difference(T before, T after) {
  return T(0.5) * (after - before);
}

// (D^T p)[j] = (p[j-1][j>=1] - p[j+1][j<=n-2] + p[n-1][j=n-1] - p[0][j=0]) / 2:
// the weight of p[from] in it, for from = j-1, j, j+1.
template <typename T>
DIFFREG_HD T adjoint_weight(int64_t j, int64_t from, int64_t size) {
  T weight = 0;
  if (from == j - 1) weight += T(0.5);
  if (from == j + 1) weight -= T(0.5);
  if (from == j && j == size - 1) weight += T(0.5);
  if (from == j && j == 0) weight -= T(0.5);
  return weight;
}

}  // namespace diffreg
