// The CPU driver's work, for operators that are made of several.
#pragma once

#include <array>
#include <vector>

#include "arguments.h"

namespace diffreg::deformation_energy {

using Energies = std::array<double, 3>;  // diffusion, bending, determinant

// The energies of every sample of a contiguous displacement (N, D, *S).
std::vector<Energies> energies_of(const Tensor& displacement, const Options& options);

// Fills `gradient` (N, D, *S) with that of every sample's energies, times its factors. Where a
// sample is not `penalised`, the determinants give nothing, not even NaN. The energies where
// `valued`.
std::vector<Energies> energies_and_gradient(const Tensor& displacement, const Options& options,
                                            const std::vector<Energies>& factors,
                                            const std::vector<char>& penalised, bool valued,
                                            Tensor& gradient);

}  // namespace diffreg::deformation_energy
