// AVX-512 with VNNI and bfloat16 dot products: Intel from Sapphire Rapids, AMD from Zen 4.
#include "target.h"

#if defined(__x86_64__) && !defined(__clang__) && __GNUC__ < 10  // does not know these instructions
#include "activations.h"

namespace gemmule {
const Path kAvx512Bf16Path = {"avx512-bf16", [] { return false; }, nullptr, nullptr, {}, {}};
}  // namespace gemmule

#elif defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "activations.h"  // shared inline functions stay on the base target

GEMMULE_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")
#include "attention_kernels.h"
#include "attention_narrow.h"
#include "glue_kernels.h"
#include "kernels.h"
#include "quantize.h"
#include "vector_avx512.h"

namespace gemmule {
namespace {

bool supported() { return kAvx512Path.supported() && __builtin_cpu_supports("avx512bf16"); }

void run(const Task& task, int64_t begin, int64_t end) { run_groups<Avx512>(task, begin, end); }
void quantize(const float* x, int64_t inputs, const Activations& out) { quantize_row(x, inputs, out); }

using Wide = Attention<Avx512>;

bool wide(const AttentionTask& task) { return task.wide || task.size > kNarrowSize; }

int tokens(const AttentionTask& task, int heads) { return wide(task) ? 1 : kMaxRows / heads; }

void span(const AttentionTask& task, const QueryRows& rows, int64_t first, int64_t count, const Partial& out) {
  if (wide(task)) {
    Wide::span(task, rows, first, count, out);
  } else {
    narrow_span(task, rows, first, count, out);
  }
}

}  // namespace

// Products and glue are those of the path without bfloat16: rounding activations would not equal the plain form.
const Path kAvx512Bf16Path = {"avx512-bf16", supported, run, quantize, {tokens, span, Wide::join}, Glue<Avx512>::path()};

}  // namespace gemmule
GEMMULE_TARGET_END
#endif
