// Image gradients of a lane's columns, and their adjoint, layer after layer as a march comes along
// them (columns.h). Differences are not halved: g is twice the gradient, and with the gradient p to
// g its adjoint is p[i - 1] - p[i + 1].
#pragma once

#include "pack_columns.h"
#include "row_exchange.h"

namespace diffreg {

// A lane beside a strip on either side holds what shuffles bring. A layer's gradient reads the
// layers and rows beside it; its adjoint reads the gradients beside it, too.
template <int D, typename S>
using GradientStrips = Strips<D, 1, 1, 0, 0, 0, kPackColumns<S>>;
template <int D, typename S>
using AdjointStrips = Strips<D, 1, 1, 2, 1, 1, kPackColumns<S>>;

// Those of a problem's images.
template <typename Shape, typename Problem>
Shape strips_of(const Problem& problem) {
  return Shape(problem.samples * problem.channels, problem.size);
}

// Blocks of a multiprocessor for which the registers of a value must do.
template <int D, typename S>
constexpr int kGradientBlocks = D == 3 || sizeof(Arithmetic<S>) == 8 ? 2 : 3;

// Layers whose loads are in flight at once: of packs, few are enough. An adjoint has registers for
// fewer in a volume.
template <int D, int images, bool masked>
constexpr int kGradientBatch = masked ? 1 : (D == 2 ? 4 : 2) / images;
template <int D, int images, bool masked>
constexpr int kAdjointBatch = masked || D == 3 ? 1 : 4 / images;

// Packs of an image that a step reads: the layer after its own one and, in a volume, the rows
// before and after.
template <int D, typename T, int V>
struct ImageLayer {
  Pack<T, V> next, beside[2];
};

// Those of some images and of their mask.
template <int D, typename T, int V, int images, bool masked>
struct GradientLayer {
  ImageLayer<D, T, V> image[images], weight;
};

// The columns of images of one shape, and of their mask, from their first layers on.
template <int D, typename S, int images, bool masked>
struct GradientColumns {
  static constexpr int V = kPackColumns<S>;
  using T = Arithmetic<S>;
  using Layer = GradientLayer<D, T, V, images, masked>;

  PackColumns<D, V> columns;
  const S* image[images];
  const T* mask;

  template <typename R>
  DIFFREG_DEVICE Pack<Arithmetic<R>, V> at(const R* from, int32_t z) const {
    return columns.load(columns.layer(from, z, false), columns.packed);
  }
  // What step z reads.
  DIFFREG_DEVICE Layer read(int32_t z, bool inner) const {
    Layer layer;
    if (columns.packed) {
      read(layer, z, inner, true);
    } else {
      read(layer, z, inner, false);
    }
    return layer;
  }

 private:
  DIFFREG_DEVICE void read(Layer& layer, int32_t z, bool inner, bool whole) const {
    for (int k = 0; k < images; ++k) read(layer.image[k], image[k], z, inner, whole);
    if constexpr (masked) read(layer.weight, mask, z, inner, whole);
  }
  template <typename R>
  DIFFREG_DEVICE void read(ImageLayer<D, T, V>& to, const R* from, int32_t z, bool inner,
                           bool whole) const {
    const R* own = columns.layer(from, D == 3 ? z : z + 1, inner);
    if constexpr (D == 3) {
      to.beside[0] = columns.load(further(own, columns.before), whole);
      to.beside[1] = columns.load(further(own, columns.after), whole);
      own = inner ? further(own, columns.extent.layer) : columns.layer(from, z + 1, false);
    }
    to.next = columns.load(own, whole);
  }
};

// Which voxels of the last layers the mask hides: bits 0 to V - 1 are those of the last one. In one
// register, which flags would not be.
template <int V>
struct HiddenLayers {
  uint32_t bits = 0;

  template <typename T>
  DIFFREG_DEVICE void move(const Pack<T, V>& value, const Pack<T, V>& weight) {
    bits <<= V;
    for (int j = 0; j < V; ++j) bits |= hidden(value.of[j], weight.of[j]) ? 1u << j : 0u;
  }
  // Two layers ago.
  DIFFREG_DEVICE bool before(int j) const { return bits >> (2 * V + j) & 1; }
};

template <typename T, int V>
DIFFREG_DEVICE Pack<T, V> visible(Pack<T, V> value, const Pack<T, V>& weight) {
  for (int j = 0; j < V; ++j) value.of[j] = visible(value.of[j], weight.of[j]);
  return value;
}

// A rolling window of three layers of the images, as the mask lets them be seen; where it hides the
// first one, and the weights of the last two.
template <int D, typename T, int V, int images, bool masked>
struct GradientWindow {
  using Layer = GradientLayer<D, T, V, images, masked>;

  Pack<T, V> before[images], here[images], next[images];
  Pack<T, V> weight, weight_next;
  HiddenLayers<V> hides;

  // To march from layer z on.
  template <typename S>
  DIFFREG_DEVICE GradientWindow(const GradientColumns<D, S, images, masked>& columns, int32_t z) {
    for (int k = 0; k < images; ++k) {
      here[k] = columns.at(columns.image[k], z - 1);
      next[k] = columns.at(columns.image[k], z);
    }
    if constexpr (masked) {
      weight = columns.at(columns.mask, z - 1);
      weight_next = columns.at(columns.mask, z);
      hides.move(here[0], weight);
      hides.move(next[0], weight_next);
      for (int k = 0; k < images; ++k) {
        here[k] = visible(here[k], weight);
        next[k] = visible(next[k], weight_next);
      }
    }
  }

  DIFFREG_DEVICE void move(const Layer& layer) {
    for (int k = 0; k < images; ++k) {
      before[k] = here[k];
      here[k] = next[k];
      next[k] = layer.image[k].next;
      if constexpr (masked) next[k] = visible(next[k], layer.weight.next);
    }
    if constexpr (masked) {
      weight = weight_next;
      weight_next = layer.weight.next;
      hides.move(layer.image[0].next, weight_next);
    }
  }

  // Twice the gradients of image k at the voxels of the layer moved to.
  DIFFREG_DEVICE void gradient(int k, const PackColumns<D, V>& columns, const Layer& layer,
                               T (&g)[V][D]) const {
    const Pack<T, V>& own = here[k];
    T left = shuffle_from_left(own.of[V - 1]), right = shuffle_from_right(own.of[0]);
    if (columns.at_left()) left = own.of[0];
    if (columns.at_right()) right = own.of[V - 1];
    Pack<T, V> beside[2];
    if constexpr (D == 3) {
      for (int r = 0; r < 2; ++r) {
        beside[r] = layer.image[k].beside[r];
        if constexpr (masked) beside[r] = visible(beside[r], layer.weight.beside[r]);
      }
    }
    for (int j = 0; j < V; ++j) {
      g[j][0] = next[k].of[j] - before[k].of[j];
      if constexpr (D == 3) g[j][1] = beside[1].of[j] - beside[0].of[j];
      g[j][D - 1] =
          (j + 1 < V ? own.of[(j + 1) % V] : right) - (j > 0 ? own.of[j - (j > 0)] : left);
    }
  }

  // What a sum takes of a value at the voxel in column j.
  DIFFREG_DEVICE T weighted(int j, T value) const {
    if constexpr (masked) return weight.of[j] * counted(value, weight.of[j]);
    return value;
  }
  DIFFREG_DEVICE T weight_of(int j) const {
    if constexpr (masked) return weight.of[j];
    return 1;
  }
  DIFFREG_DEVICE T counted_at(int j, T value) const {
    if constexpr (masked) return counted(value, weight.of[j]);
    return value;
  }
  // The gradient to the first image a layer ago: none to what is hidden.
  DIFFREG_DEVICE void leave_out_hidden(Pack<T, V>& gradient) const {
    if constexpr (masked) {
      for (int j = 0; j < V; ++j) gradient.of[j] = hides.before(j) ? T(0) : gradient.of[j];
    }
  }
};

// The adjoint of the gradients, of the gradient p to them.
template <int D, typename T, int V>
class Adjoint {
 public:
  // Moves on by p of a layer; returns the image's gradient in the layer before.
  DIFFREG_DEVICE Pack<T, V> advance(const PackColumns<D, V>& columns, const T (&p)[V][D]) {
    Pack<T, V> sum;
    for (int j = 0; j < V; ++j) {
      sum.of[j] = along_.of[j] + (before_.of[j] - p[j][0]);
      before_.of[j] = last_.of[j];
      last_.of[j] = p[j][0];
    }
    T left = shuffle_from_left(p[V - 1][D - 1]), right = shuffle_from_right(p[0][D - 1]);
    if (columns.at_left()) left = -p[0][D - 1];
    if (columns.at_right()) right = -p[V - 1][D - 1];
    for (int j = 0; j < V; ++j) {
      along_.of[j] =
          (j > 0 ? p[j - (j > 0)][D - 1] : left) - (j + 1 < V ? p[(j + 1) % V][D - 1] : right);
    }
    if constexpr (D == 3) {
      Pack<T, V> row, before, after;
      for (int j = 0; j < V; ++j) row.of[j] = p[j][1];
      exchange_(&row, &before, &after);
      for (int j = 0; j < V; ++j) along_.of[j] += before.of[j] - after.of[j];
    }
    return sum;
  }

 private:
  Pack<T, V> before_ = {}, last_ = {};  // p[0] two layers ago, and one
  Pack<T, V> along_ = {};               // what the others gave a layer ago
  ExchangeOf<D, 1, Pack<T, V>> exchange_;
};

// Calls run(masked) with it as a type.
template <typename T, typename Run>
void dispatch_mask(const T* mask, const Run& run) {
  if (mask) {
    run(std::true_type());
  } else {
    run(std::false_type());
  }
}

}  // namespace diffreg
