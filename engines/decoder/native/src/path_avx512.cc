// AVX-512 with VNNI: Intel from Ice Lake, AMD from Zen 4.
#include "target.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "activations.h"  // shared inline functions stay on the base target

GEMMULE_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#include "attention_kernels.h"
#include "glue_kernels.h"
#include "kernels.h"
#include "quantize.h"
#include "vector_avx512.h"

namespace gemmule {
namespace {

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}
void run(const Task& task, int64_t begin, int64_t end) { run_groups<Avx512>(task, begin, end); }
void quantize(const float* x, int64_t inputs, const Activations& out) { quantize_row(x, inputs, out); }

}  // namespace

const Path kAvx512Path = {"avx512-vnni", supported,
                          run, quantize, Attention<Avx512>::path(), Glue<Avx512>::path()};

}  // namespace gemmule
GEMMULE_TARGET_END
#endif
