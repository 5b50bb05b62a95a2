// Jacobian determinants of phi = id + u at the 2^D corners of one cell, and their adjoint.
// At a corner the determinant of the D edges that meet there: in 2-D e x f, in 3-D e . (f x g),
// with e, f, g along axes 0, 1, 2.
#pragma once

#include "host_device.h"

namespace diffreg {

template <typename T>
DIFFREG_HD void cross(const T* a, const T* b, T* out) {
  DIFFREG_UNROLL
  for (int c = 0; c < 3; ++c) {
    const int next = (c + 1) % 3, last = (c + 2) % 3;
    out[c] = a[next] * b[last] - a[last] * b[next];
  }
}

// a . (b x c)
template <typename T>
DIFFREG_HD T determinant(const T* a, const T* b, const T* c) {
  T across[3];
  cross(b, c, across);
  return (a[0] * across[0] + a[1] * across[1]) + a[2] * across[2];
}

// Vertex and corner a + 2b + 4c, the first axis fastest; edge j of an axis is numbered alike by the
// other axes. Edges are a unit vector plus a difference of u: absolute positions would cost digits.
template <int D, typename T>
struct Cell {
  static constexpr int kCorners = 1 << D, kEdges = 1 << (D - 1);
  T edge[D][kEdges][D];  // [axis][j][component]

  // The lower vertex of edge j of an axis: 0 put in at that axis.
  DIFFREG_HD static constexpr int vertex_of(int axis, int j) {
    return (j & ((1 << axis) - 1)) | (j >> axis << (axis + 1));
  }
  // The edge of an axis that ends in a vertex.
  DIFFREG_HD static constexpr int edge_at(int axis, int vertex) {
    return (vertex & ((1 << axis) - 1)) | (vertex >> (axis + 1) << axis);
  }

  // displacement(vertex, component) is that of a vertex.
  template <typename Displacement>
  DIFFREG_HD explicit Cell(const Displacement& displacement) {
    DIFFREG_UNROLL
    for (int axis = 0; axis < D; ++axis) {
      DIFFREG_UNROLL
      for (int j = 0; j < kEdges; ++j) {
        const int low = vertex_of(axis, j), high = low | 1 << axis;
        DIFFREG_UNROLL
        for (int c = 0; c < D; ++c) {
          const T along = c == axis ? T(1) : T(0);
          edge[axis][j][c] = along + (displacement(high, c) - displacement(low, c));
        }
      }
    }
  }

  DIFFREG_HD void determinants(T* corner) const {
    DIFFREG_UNROLL
    for (int v = 0; v < kCorners; ++v) {
      T across[D];
      cofactor(0, v, across);
      corner[v] = dot(at(0, v), across);
    }
  }

  // Gradient to the vertices, [vertex][component], given that to the corners' determinants.
  DIFFREG_HD void adjoint(const T* corner, T (*vertex)[D]) const {
    T to_edge[D][kEdges][D] = {};
    DIFFREG_UNROLL
    for (int v = 0; v < kCorners; ++v) {
      DIFFREG_UNROLL
      for (int axis = 0; axis < D; ++axis) {
        T across[D];
        cofactor(axis, v, across);
        DIFFREG_UNROLL
        for (int c = 0; c < D; ++c) to_edge[axis][edge_at(axis, v)][c] += corner[v] * across[c];
      }
    }
    DIFFREG_UNROLL
    for (int v = 0; v < kCorners; ++v) {
      DIFFREG_UNROLL
      for (int c = 0; c < D; ++c) {
        T sum = 0;
        DIFFREG_UNROLL
        for (int axis = 0; axis < D; ++axis) {
          const T part = to_edge[axis][edge_at(axis, v)][c];
          sum += v >> axis & 1 ? part : -part;
        }
        vertex[v][c] = sum;
      }
    }
  }

  // The edge of an axis at a corner.
  DIFFREG_HD const T* at(int axis, int corner) const { return edge[axis][edge_at(axis, corner)]; }

  // The determinant's derivative by that edge: what its product with the edge is the determinant.
  DIFFREG_HD void cofactor(int axis, int corner, T* out) const {
    if constexpr (D == 2) {
      const T* other = at(1 - axis, corner);
      out[0] = axis == 0 ? other[1] : -other[1];
      out[1] = axis == 0 ? -other[0] : other[0];
    } else {
      cross(at((axis + 1) % 3, corner), at((axis + 2) % 3, corner), out);
    }
  }

  DIFFREG_HD static T dot(const T* a, const T* b) {
    T sum = a[0] * b[0];
    DIFFREG_UNROLL
    for (int c = 1; c < D; ++c) sum += a[c] * b[c];
    return sum;
  }
};

}  // namespace diffreg
