// What the drivers of mutual_information ask of its arguments.
#pragma once

#include "../common/check.h"
#include "mutual_information.h"

namespace diffreg::mutual_information {

inline void check_bins(int64_t bins) {
  STD_TORCH_CHECK(kFewestBins <= bins && bins <= kMostBins, "bins must be at least ", kFewestBins,
                  " and at most ", kMostBins, ", got ", bins);
}

inline void check_moving(const Tensor& moving, const Tensor& warped) {
  check_dtype("moving", moving, warped.scalar_type());
  STD_TORCH_CHECK(moving.size(0) == warped.size(0), "moving must have ", warped.size(0),
                  " samples, got ", shape_of(moving));
}

}  // namespace diffreg::mutual_information
