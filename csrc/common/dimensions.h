// Axes of a grid, and components of a displacement, of the CUDA kernels.
#pragma once

namespace diffreg {

constexpr int D = 2;

}  // namespace diffreg
