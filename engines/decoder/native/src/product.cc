#include "product.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "pool.h"

namespace gemmule {
namespace {

const Path* const kPaths[] = {
#if defined(__x86_64__)
    &kAvx512Path, &kAvx2Path,
#elif defined(__aarch64__)
    &kNeonPath,
#endif
    &kPortablePath};

constexpr int64_t kSerialBytes = 64 << 10;  // less work than this is not worth waking a thread for
constexpr int64_t kCacheBytes = 384 << 10;  // activations of one pass stay in the second-level cache
constexpr int64_t kSerialInputs = 16 << 10;

// Scratch of one calling thread, kept between calls.
struct Scratch {
  std::vector<int32_t> codes, sums;
  std::vector<float> scales, offsets, padded;
  std::vector<Activations> rows;

  void reserve(int64_t count, int64_t inputs) {
    const int64_t blocks = blocks_of(inputs);
    grow(codes, count * blocks * 8);
    grow(sums, count * blocks * 2);
    grow(scales, count * blocks);
    grow(offsets, count * blocks);
    grow(rows, count);
    for (int64_t m = 0; m < count; ++m)
      rows[m] = {codes.data() + m * blocks * 8, scales.data() + m * blocks, sums.data() + m * blocks * 2,
                 offsets.data() + m * blocks, nullptr};
  }

  template <class T>
  static void grow(std::vector<T>& buffer, int64_t size) {
    if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  }
};

struct Quantize {
  const Path& path;
  const float* x;
  int64_t count, inputs, step;
  const Activations* rows;
};

void quantize_chunk(void* context, int64_t chunk) {
  const Quantize& job = *static_cast<Quantize*>(context);
  const int64_t end = std::min((chunk + 1) * job.step, job.count);
  for (int64_t m = chunk * job.step; m < end; ++m) job.path.quantize(job.x + m * job.inputs, job.inputs, job.rows[m]);
}

struct Groups {
  const Path& path;
  Task task;
  int64_t total, step;
};

void group_chunk(void* context, int64_t chunk) {
  const Groups& job = *static_cast<Groups*>(context);
  job.path.run(job.task, chunk * job.step, std::min((chunk + 1) * job.step, job.total));
}

void quantize_rows(const Path& path, const float* x, int64_t count, int64_t inputs, const Activations* rows) {
  const int64_t step = std::max<int64_t>(1, kSerialInputs / inputs);
  Quantize job{path, x, count, inputs, step, rows};
  pool().run((count + step - 1) / step, quantize_chunk, &job);
}

// bf16 needs no codes, only inputs padded to whole blocks.
void point_rows(const float* x, int64_t count, int64_t inputs, Scratch& scratch) {
  const int64_t width = round_up(inputs, kBlock);
  if (width != inputs) {
    scratch.padded.assign(count * width, 0.0f);
    for (int64_t m = 0; m < count; ++m)
      std::memcpy(scratch.padded.data() + m * width, x + m * inputs, inputs * sizeof(float));
    x = scratch.padded.data();
  }
  for (int64_t m = 0; m < count; ++m) scratch.rows[m].values = x + m * width;
}

}  // namespace

void product(const Path& path, Format format, const float* x, int64_t count, int64_t inputs, const uint8_t* packed,
             int64_t outputs, float* out) {
  static thread_local Scratch scratch;
  scratch.reserve(count, inputs);
  if (format == kBF16) {
    point_rows(x, count, inputs, scratch);
  } else {
    quantize_rows(path, x, count, inputs, scratch.rows.data());
  }
  const int64_t total = groups_of(outputs);
  const int64_t row_bytes = inputs * (format == kBF16 ? 4 : 1);
  const int64_t rows = std::max<int64_t>(8, kCacheBytes / row_bytes / 8 * 8);
  for (int64_t m = 0; m < count; m += rows) {
    const int64_t here = std::min(rows, count - m);
    const Task task{format, packed, scratch.rows.data() + m, here, inputs, outputs, out + m * outputs};
    Groups job{path, task, total, total};
    if (total * group_bytes(format, inputs) * here > kSerialBytes)
      job.step = std::max<int64_t>(1, total / (pool().threads() * 4));
    pool().run((total + job.step - 1) / job.step, group_chunk, &job);
  }
}

const Path* find_path(const char* name) {
  for (const Path* path : kPaths)
    if (path->supported() && (!name || std::strcmp(name, path->name) == 0)) return path;
  return nullptr;
}

const Path& best_path() {
  static const Path& chosen = *find_path(nullptr);
  return chosen;
}

}  // namespace gemmule
