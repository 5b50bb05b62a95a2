// Marks the formulas that the CPU and the CUDA drivers share, and what else a loop over voxels must
// not call but contain, or it does not become vector code.
#pragma once

#define DIFFREG_INLINE __attribute__((always_inline)) inline

#ifdef __CUDACC__
#define DIFFREG_HD __host__ __device__ inline
#else
#define DIFFREG_HD DIFFREG_INLINE
#endif
