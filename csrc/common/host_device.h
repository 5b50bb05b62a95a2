// Marks the formulas that the CPU and the CUDA drivers share.
#pragma once

#ifdef __CUDACC__
#define DIFFREG_HD __host__ __device__ inline
#else
#define DIFFREG_HD inline
#endif
