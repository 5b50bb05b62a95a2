// The launcher of local_correlation.cu. All tensors are contiguous.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../common/storage.h"
#include "local_correlation.h"

namespace diffreg::local_correlation {

struct Problem {
  int64_t samples, channels;
  int32_t depth, height, width;  // an image is a volume of one plane
  int32_t radius;                // at most the longest side

  Problem() = default;
  // A window reaches no further than the image, however large it was asked for.
  Problem(int64_t samples, int64_t channels, const int64_t* size, int dimensions, int64_t window)
      : samples(samples),
        channels(channels),
        depth(dimensions == 3 ? static_cast<int32_t>(size[0]) : 1),
        height(static_cast<int32_t>(size[dimensions - 2])),
        width(static_cast<int32_t>(size[dimensions - 1])) {
    const int64_t longest = std::max({depth, height, width});
    radius = static_cast<int32_t>(std::min(window / 2, longest));
  }

  int64_t planes() const { return samples * channels; }
  DIFFREG_HD int64_t voxels() const { return int64_t{depth} * height * width; }
};

template <typename S>
struct Images {
  const S* own;               // (N, C, *S), the one that a gradient goes to
  const S* other;             // (N, C, *S)
  const Arithmetic<S>* mask;  // (N, 1, *S) or null
};

// What is to be computed: what is not null.
template <typename S>
struct Results {
  Arithmetic<S>* value;  // (N)
  S* grad_warped;        // (N, C, *S)
  S* grad_fixed;         // (N, C, *S)
  bool accumulate;       // to the gradients that are there

  bool any() const { return value || grad_warped || grad_fixed; }
};

template <typename S>
int64_t workspace_doubles(const Problem& problem, const Images<S>& images,
                          const Results<S>& results);

template <int D, typename S>
void launch(const Problem& problem, const Images<S>& images,  // own: warped
            const Arithmetic<S>* gradient,                    // (N), to the value; null: 1
            double* workspace,                                // (workspace_doubles)
            const Results<S>& results, void* stream);

}  // namespace diffreg::local_correlation
