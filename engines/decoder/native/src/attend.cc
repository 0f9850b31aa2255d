#include "attend.h"

#include <algorithm>
#include <vector>

#include "pool.h"

namespace gemmule {
namespace {

constexpr int64_t kSerialWork = 16 << 10;  // multiply-adds not worth waking a thread for

// One query row of one key-value head: `group` query heads, the positions [first, last] it sees.
struct Row {
  int64_t base;
  const float* query;
  float* out;
  int64_t first, last;

  int64_t spans() const { return last / kSpan - first / kSpan + 1; }
};

struct Job {
  const Path& path;
  const AttentionTask& task;
  int group;  // query heads for each key-value head
};

Row row_of(const Job& job, int64_t unit) {
  const AttentionTask& task = job.task;
  const int64_t kv = unit % task.kv_heads, token = unit / task.kv_heads, b = token / task.time;
  const int64_t first_head = kv * job.group * task.size;
  const int64_t slot = std::min<int64_t>(std::max(task.slots[b], 0), task.cache_slots - 1);
  const int64_t position = task.positions[token];
  const int64_t limit = task.window > 0 ? std::min(task.window, task.length) : task.length;
  const int64_t base = (slot * task.kv_heads + kv) * task.length * task.size;
  const float* query = task.query + token * task.query_stride + first_head;
  float* out = task.out + token * task.heads * task.size + first_head;
  return {base, query, out, std::max<int64_t>(0, position - limit + 1), position};
}

Partial partial_in(float* buffer, int64_t size) {
  Partial partial{};
  for (int g = 0; g < kMaxGroup; ++g) partial.sums[g] = buffer + g * size;
  return partial;
}

void span(const Job& job, const Row& row, int64_t index, int64_t head, int group, Partial* out) {
  const int64_t start = std::max((row.first / kSpan + index) * kSpan, row.first);
  const int64_t end = std::min((row.first / kSpan + index + 1) * kSpan, row.last + 1);
  job.path.attention.span(job.task, row.base, row.query + head * job.task.size, group, start, end - start, *out);
}

void finish(const Job& job, const Row& row, int64_t head, int group, const Partial& all) {
  for (int g = 0; g < group; ++g) {
    float* out = row.out + (head + g) * job.task.size;
    const float inverse = 1.0f / all.total[g];
    for (int64_t h = 0; h < job.task.size; ++h) out[h] = all.sums[g][h] * inverse;
  }
}

// A whole row on one thread.
void attend_row(void* context, int64_t unit) {
  const Job& job = *static_cast<Job*>(context);
  const Row row = row_of(job, unit);
  const int64_t size = job.task.size;
  if (row.last < 0) {  // padding
    std::fill(row.out, row.out + job.group * size, 0.0f);
    return;
  }
  static thread_local std::vector<float> buffer;
  if (static_cast<int64_t>(buffer.size()) < 2 * kMaxGroup * size) buffer.resize(2 * kMaxGroup * size);
  for (int64_t head = 0; head < job.group; head += kMaxGroup) {
    const int group = static_cast<int>(std::min<int64_t>(kMaxGroup, job.group - head));
    Partial all = partial_in(buffer.data(), size), next = partial_in(buffer.data() + kMaxGroup * size, size);
    span(job, row, 0, head, group, &all);
    for (int64_t index = 1; index < row.spans(); ++index) {
      span(job, row, index, head, group, &next);
      job.path.attention.join(job.task, group, next, &all);
    }
    finish(job, row, head, group, all);
  }
}

// Few rows with long contexts: every span of every row is a chunk of its own.
struct SpanJob {
  Job job;
  int64_t spans, turns;
  std::vector<float> buffer;
  std::vector<Partial> partials;
};

void attend_span(void* context, int64_t chunk) {
  SpanJob& work = *static_cast<SpanJob*>(context);
  const int64_t unit = chunk / work.turns / work.spans, index = chunk / work.turns % work.spans;
  const Row row = row_of(work.job, unit);
  if (row.last < 0 || index >= row.spans()) return;
  const int64_t head = chunk % work.turns * kMaxGroup;
  const int group = static_cast<int>(std::min<int64_t>(kMaxGroup, work.job.group - head));
  span(work.job, row, index, head, group, &work.partials[chunk]);
}

void attend_spans(const Job& job, int64_t units, int64_t spans) {
  static thread_local SpanJob* kept = nullptr;  // the buffers outlive the call: decoding comes back every step
  if (!kept) kept = new SpanJob{job, 0, 0, {}, {}};
  SpanJob work{job, spans, (job.group + kMaxGroup - 1) / kMaxGroup, std::move(kept->buffer), std::move(kept->partials)};
  const int64_t chunks = units * work.spans * work.turns, size = job.task.size;
  if (static_cast<int64_t>(work.buffer.size()) < chunks * kMaxGroup * size) work.buffer.resize(chunks * kMaxGroup * size);
  work.partials.resize(chunks);
  for (int64_t c = 0; c < chunks; ++c) work.partials[c] = partial_in(work.buffer.data() + c * kMaxGroup * size, size);
  pool().run(chunks, attend_span, &work);
  for (int64_t unit = 0; unit < units; ++unit) {
    const Row row = row_of(job, unit);
    if (row.last < 0) std::fill(row.out, row.out + job.group * size, 0.0f);
    for (int64_t turn = 0; turn < work.turns && row.last >= 0; ++turn) {
      const int group = static_cast<int>(std::min<int64_t>(kMaxGroup, job.group - turn * kMaxGroup));
      Partial* all = &work.partials[unit * work.spans * work.turns + turn];
      for (int64_t index = 1; index < row.spans(); ++index)
        job.path.attention.join(job.task, group, all[index * work.turns], all);
      finish(job, row, turn * kMaxGroup, group, *all);
    }
  }
  kept->buffer = std::move(work.buffer);
  kept->partials = std::move(work.partials);
}

}  // namespace

void attend(const Path& path, const AttentionTask& task) {
  Job job{path, task, static_cast<int>(task.heads / task.kv_heads)};
  const int64_t units = task.batch * task.time * task.kv_heads;
  int64_t keys = 0, spans = 1;
  for (int64_t unit = 0; unit < units; ++unit) {
    const Row row = row_of(job, unit);
    if (row.last < 0) continue;
    keys += row.last - row.first + 1;
    spans = std::max(spans, row.spans());
  }
  if (keys * job.group * task.size < kSerialWork) {
    for (int64_t unit = 0; unit < units; ++unit) attend_row(&job, unit);
  } else if (units < 2 * pool().threads() && spans > 1) {
    attend_spans(job, units, spans);
  } else {
    pool().run(units, attend_row, &job);
  }
}

}  // namespace gemmule
