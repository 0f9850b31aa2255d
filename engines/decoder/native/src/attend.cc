#include "attend.h"

#include <algorithm>
#include <limits>

#include "arena.h"
#include "pool.h"

namespace gemmule {
namespace {

constexpr int64_t kSerialWork = 16 << 10;    // multiply-adds not worth waking a thread for
constexpr int64_t kPartialFloats = 4 << 20;  // of all spans of all rows, where spans are shared among threads

// How the rows of a task are cut into units: some tokens and heads of one sequence and one key head.
struct Cut {
  const AttentionTask& task;
  int group, heads, turns;  // query heads for each key head, those of a unit, units they make
  int tokens;
  int64_t blocks;  // of tokens, in a sequence

  Cut(const Path& path, const AttentionTask& task) : task(task) {
    group = static_cast<int>(task.heads / task.kv_heads);
    turns = (group + kMaxGroup - 1) / kMaxGroup;
    heads = (group + turns - 1) / turns;
    tokens = path.attention.tokens(task, heads);
    blocks = (task.time + tokens - 1) / tokens;
  }

  int64_t units() const { return task.batch * blocks * task.kv_heads * turns; }
  int rows() const { return tokens * heads; }

  QueryRows operator[](int64_t unit) const {
    const int64_t turn = unit % turns, kv = unit / turns % task.kv_heads;
    const int64_t block = unit / turns / task.kv_heads % blocks, b = unit / turns / task.kv_heads / blocks;
    const int64_t token = b * task.time + block * tokens, head = kv * group + turn * heads;
    const int64_t slot = std::min<int64_t>(std::max(task.slots[b], 0), task.cache_slots - 1);
    return {(slot * task.kv_heads + kv) * task.length * task.size,
            task.query + token * task.query_stride + head * task.size,
            task.out + (token * task.heads + head) * task.size,
            static_cast<int>(std::min<int64_t>(tokens, task.time - block * tokens)),
            static_cast<int>(std::min<int64_t>(heads, group - turn * heads)),
            task.positions + token,
            task.window > 0 ? std::min(task.window, task.length) : task.length};
  }
};

// The positions that any of the rows sees, [first, last]; last is -1 where all are padding.
struct Seen {
  int64_t first = std::numeric_limits<int64_t>::max(), last = -1;

  explicit Seen(const QueryRows& rows) {
    for (int t = 0; t < rows.tokens; ++t) {
      if (rows.last(t) < 0) continue;
      first = std::min(first, rows.first(t));
      last = std::max(last, rows.last(t));
    }
  }

  int64_t spans() const { return last < 0 ? 0 : last / kSpan - first / kSpan + 1; }
};

Partial partial_at(float* memory, int rows) { return {memory, memory + rows, memory + 2 * rows}; }
int64_t partial_floats(int rows, int64_t size) { return rows * (size + 2); }

void attend_span(const Path& path, const AttentionTask& task, const QueryRows& rows, const Seen& seen, int64_t index,
                 const Partial& out) {
  const int64_t start = std::max((seen.first / kSpan + index) * kSpan, seen.first);
  const int64_t end = std::min((seen.first / kSpan + index + 1) * kSpan, seen.last + 1);
  path.attention.span(task, rows, start, end - start, out);
}

void finish(const AttentionTask& task, const QueryRows& rows, const Partial& all) {
  for (int t = 0; t < rows.tokens; ++t) {
    for (int g = 0; g < rows.heads; ++g) {
      const int r = t * rows.heads + g;
      float* out = rows.out + (t * task.heads + g) * task.size;
      if (rows.last(t) < 0) {  // padding
        std::fill(out, out + task.size, 0.0f);
        continue;
      }
      const float inverse = 1.0f / all.total[r];
      for (int64_t h = 0; h < task.size; ++h) out[h] = all.sums[r * task.size + h] * inverse;
    }
  }
}

// A unit on one thread, span after span.
void attend_unit(const Path& path, const Cut& cut, int64_t unit) {
  const AttentionTask& task = cut.task;
  const QueryRows rows = cut[unit];
  const Seen seen(rows);
  Lease arena;
  const int64_t floats = partial_floats(cut.rows(), task.size);
  const Partial all = partial_at(arena->take<float>(floats), cut.rows());
  const Partial next = partial_at(arena->take<float>(floats), cut.rows());
  for (int64_t index = 0; index < seen.spans(); ++index) {
    attend_span(path, task, rows, seen, index, index ? next : all);
    if (index) path.attention.join(task, rows.tokens * rows.heads, next, all);
  }
  finish(task, rows, all);
}

// Few units with long contexts: every span of every unit is a piece of work of its own.
void attend_spans(const Path& path, const Cut& cut, int64_t spans) {
  const AttentionTask& task = cut.task;
  const int64_t units = cut.units(), floats = partial_floats(cut.rows(), task.size);
  Lease arena;
  float* memory = arena->take<float>(units * spans * floats);
  const auto partial = [&](int64_t unit, int64_t index) {
    return partial_at(memory + (unit * spans + index) * floats, cut.rows());
  };
  parallel(units * spans, [&](int64_t chunk) {
    const QueryRows rows = cut[chunk / spans];
    const Seen seen(rows);
    if (chunk % spans < seen.spans())
      attend_span(path, task, rows, seen, chunk % spans, partial(chunk / spans, chunk % spans));
  });
  for (int64_t unit = 0; unit < units; ++unit) {
    const QueryRows rows = cut[unit];
    const Seen seen(rows);
    const Partial all = partial(unit, 0);
    for (int64_t index = 1; index < seen.spans(); ++index)
      path.attention.join(task, rows.tokens * rows.heads, partial(unit, index), all);
    finish(task, rows, all);
  }
}

}  // namespace

void attend(const Path& path, const AttentionTask& task) {
  const Cut cut(path, task);
  const int64_t units = cut.units();
  int64_t keys = 0, spans = 1;
  for (int64_t unit = 0; unit < units; ++unit) {
    const QueryRows rows = cut[unit];
    const Seen seen(rows);
    if (seen.last >= 0) keys += (seen.last - seen.first + 1) * rows.tokens;
    spans = std::max(spans, seen.spans());
  }
  if (keys * cut.heads * task.size < kSerialWork) {
    for (int64_t unit = 0; unit < units; ++unit) attend_unit(path, cut, unit);
  } else if (units < 2 * pool().threads() && spans > 1 &&
             units * spans * partial_floats(cut.rows(), task.size) < kPartialFloats) {
    attend_spans(path, cut, spans);
  } else {
    parallel(units, [&](int64_t unit) { attend_unit(path, cut, unit); });
  }
}

}  // namespace gemmule
