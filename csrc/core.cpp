// The library diffreg/_core: what the core was built from, and which of its CPU variants this
// processor runs. Loading it registers the CUDA kernels, where it has any.
#include <cstdlib>
#include <sstream>
#include <string>

namespace {

bool runs(const std::string& variant) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (variant == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (variant == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return variant == "baseline";
}

// Of those that were built, slowest first, with blanks between.
std::string cpu_variants() {
  std::string found;
  std::istringstream built(DIFFREG_CPU_VARIANTS);
  for (std::string variant; built >> variant;) {
    if (runs(variant)) found += (found.empty() ? "" : " ") + variant;
  }
  return found;
}

// The one to load: that of DIFFREG_CPU, else the fastest.
std::string cpu_variant() {
  const char* wanted = std::getenv("DIFFREG_CPU");
  if (wanted && *wanted) return wanted;
  const std::string running = cpu_variants();
  return running.substr(running.rfind(' ') + 1);
}

}  // namespace

// Lines of "name=value"; the text stays.
extern "C" __attribute__((visibility("default"))) const char* diffreg_build_info() {
  static const std::string info =
      "version=" DIFFREG_VERSION "\ntorch=" DIFFREG_TORCH_VERSION
      "\noldest_torch=" DIFFREG_OLDEST_TORCH "\ncompiler=" DIFFREG_COMPILER "\ncpu_variant=" +
      cpu_variant() + "\ncpu_variants=" + cpu_variants() +
      "\ncuda_architectures=" DIFFREG_CUDA_ARCHITECTURES "\ncuda_runtime=" DIFFREG_CUDA_RUNTIME;
  return info.c_str();
}
