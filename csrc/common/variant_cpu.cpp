// Which instruction set this library of CPU operators was compiled for, from its own mouth: what
// the compiler was told, not what the build called it.
extern "C" __attribute__((visibility("default"))) const char* diffreg_cpu_variant() {
#if defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#else
  return "baseline";
#endif
}
