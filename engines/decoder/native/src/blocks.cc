#include "blocks.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "attend.h"
#include "pool.h"
#include "store.h"

namespace gemmule {
namespace {

constexpr int64_t kFloatsAtOnce = 2 << 20;  // of working memory for the rows computed together

// Rows of `floats` working memory each that are computed together.
int64_t rows_at_once(int64_t count, int64_t floats) {
  return std::min(count, std::max<int64_t>(32, kFloatsAtOnce / floats / 32 * 32));
}

bool any(std::initializer_list<const Matrix*> matrices, bool floats) {
  for (const Matrix* matrix : matrices)
    if (matrix->packed && (matrix->format == kBF16) == floats) return true;
  return false;
}

Inputs inputs_for(const Path& path, Arena& arena, int64_t rows, int64_t width, std::initializer_list<const Matrix*> matrices) {
  return Inputs(path, arena, rows, width, any(matrices, false), any(matrices, true));
}

// out = hidden + norm(sums) for one row; `sums` is overwritten.
void add_residual(const Path& path, const float* hidden, const float* scale, float epsilon, int64_t width,
                  float* sums, float* out) {
  if (scale) path.glue.norm(sums, scale, width, epsilon, sums);
  path.glue.add(hidden, sums, width, out);
}

void add_bias(const Path& path, const float* bias, int64_t size, float* x) {
  if (bias) path.glue.add(x, bias, size, x);
}

// Queries, keys and values of all rows, side by side: out [rows, sum of widths].
void project(const Path& path, const AttentionBlock& block, Arena& arena, int64_t total, float* out) {
  const int64_t count = block.batch * block.time, rows = rows_at_once(count, block.width);
  float* normal = arena.take<float>(rows * block.width);
  Inputs inputs = inputs_for(path, arena, rows, block.width, {block.parts, block.parts + 1, block.parts + 2});
  for (int64_t first = 0; first < count; first += rows) {
    const int64_t here = std::min(rows, count - first);
    for_rows(here, block.width, [&](int64_t m) {
      float* row = normal + m * block.width;
      path.glue.norm(block.hidden + (first + m) * block.width, block.input_norm, block.width, block.epsilon, row);
      inputs.set(m, row);
    });
    float* to = out + first * total;
    for (int part = 0; part < kParts; to += block.widths[part++])
      if (block.parts[part].packed) multiply(path, block.parts[part], inputs, here, to, total);
  }
}

// One row between the projections and the attention: biases, norms and rotation of its heads, its place in the cache.
void place_row(const Path& path, const AttentionBlock& block, int64_t token, float* row) {
  const int64_t size = block.attention.size, half = size / 2;
  const float *cosine = block.cosine + token * half, *sine = block.sine + token * half;
  float* parts[kParts] = {row, row + block.widths[0], row + block.widths[0] + block.widths[1]};
  for (int part = 0; part < kParts; ++part) add_bias(path, block.biases[part], block.widths[part], parts[part]);
  if (block.widths[1] > 0 && block.widths[2] == 0)  // values are the raw keys: the row has room for them
    std::memcpy(parts[2], parts[1], static_cast<size_t>(block.widths[1]) * sizeof(float));
  const float* scales[2] = {block.query_norm, block.key_norm};
  for (int part = 0; part < 2; ++part) {
    for (float* head = parts[part]; head < parts[part] + block.widths[part]; head += size) {
      if (block.norm_heads) path.glue.norm(head, scales[part], size, block.epsilon, head);
      path.glue.rotate(head, cosine, sine, half);
    }
  }
  if (block.widths[1] == 0) return;
  if (block.norm_values)
    for (float* head = parts[2]; head < parts[2] + block.widths[1]; head += size)
      path.glue.norm(head, nullptr, size, block.epsilon, head);
  const AttentionTask& task = block.attention;
  const StoreTask place{task.slots[token / task.time], task.positions[token], task.kv_heads,
                        task.length,                   task.size,             task.cache_slots};
  store_token(place, parts[1], task.wide, block.keys);
  store_token(place, parts[2], task.wide, block.values);
}

void project_output(const Path& path, const AttentionBlock& block, Arena& arena, const float* attended) {
  const int64_t count = block.batch * block.time, inner = block.attention.heads * block.attention.size;
  const int64_t rows = rows_at_once(count, block.width + inner);
  Inputs inputs = inputs_for(path, arena, rows, inner, {&block.output});
  float* sums = arena.take<float>(rows * block.width);
  for (int64_t first = 0; first < count; first += rows) {
    const int64_t here = std::min(rows, count - first);
    for_rows(here, inner, [&](int64_t m) { inputs.set(m, attended + (first + m) * inner); });
    multiply(path, block.output, inputs, here, sums, block.width);
    for_rows(here, block.width, [&](int64_t m) {
      const int64_t at = (first + m) * block.width;
      float* row = sums + m * block.width;
      add_bias(path, block.output_bias, block.width, row);
      add_residual(path, block.hidden + at, block.post_norm, block.epsilon, block.width, row, block.out + at);
    });
  }
}

}  // namespace

void run_block(const Path& path, AttentionBlock block) {
  Lease arena;
  const int64_t count = block.batch * block.time, inner = block.attention.heads * block.attention.size;
  const int64_t total = block.widths[0] + 2 * block.widths[1];
  float* projected = arena->take<float>(count * total);
  float* attended = arena->take<float>(count * inner);
  project(path, block, *arena, total, projected);
  for_rows(count, total, [&](int64_t token) { place_row(path, block, token, projected + token * total); });
  block.attention.query = projected;
  block.attention.query_stride = total;
  block.attention.out = attended;
  attend(path, block.attention);
  project_output(path, block, *arena, attended);
}

void run_block(const Path& path, const FeedForwardBlock& block) {
  Lease arena;
  const int64_t inner = block.inner, rows = rows_at_once(block.count, 2 * inner + 2 * block.width);
  float* normal = arena->take<float>(rows * block.width);
  float* both = arena->take<float>(rows * 2 * inner);
  float* sums = arena->take<float>(rows * block.width);
  Inputs inputs = inputs_for(path, *arena, rows, block.width, {&block.gate, &block.up});
  Inputs gated = inputs_for(path, *arena, rows, inner, {&block.down});
  for (int64_t first = 0; first < block.count; first += rows) {
    const int64_t here = std::min(rows, block.count - first);
    for_rows(here, block.width, [&](int64_t m) {
      float* row = normal + m * block.width;
      path.glue.norm(block.hidden + (first + m) * block.width, block.input_norm, block.width, block.epsilon, row);
      inputs.set(m, row);
    });
    multiply(path, block.gate, inputs, here, both, 2 * inner);
    if (block.up.packed) multiply(path, block.up, inputs, here, both + inner, 2 * inner);
    for_rows(here, 2 * inner, [&](int64_t m) {
      float* row = both + m * 2 * inner;
      path.glue.gate(block.activation, row, row + inner, inner, row);
      gated.set(m, row);
    });
    multiply(path, block.down, gated, here, sums, block.width);
    for_rows(here, block.width, [&](int64_t m) {
      const int64_t at = (first + m) * block.width;
      add_residual(path, block.hidden + at, block.post_norm, block.epsilon, block.width,
                   sums + m * block.width, block.out + at);
    });
  }
}

}  // namespace gemmule
