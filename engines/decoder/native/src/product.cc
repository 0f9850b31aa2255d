#include "product.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "pool.h"

namespace gemmule {
namespace {

const Path* const kPaths[] = {
#if defined(__x86_64__)
    &kAvx512Bf16Path, &kAvx512Path, &kAvx2Path,
#elif defined(__aarch64__)
    &kNeonPath,
#endif
    &kPortablePath};

constexpr int64_t kSerialBytes = 64 << 10;  // less work than this is not worth waking a thread for
constexpr int64_t kChunkBytes = 512 << 10;  // a thread that loses its processor holds the others up no longer
constexpr int64_t kCacheBytes = 384 << 10;  // activations of one pass stay in the second-level cache

int64_t groups_at_once(int64_t groups, int64_t bytes, int64_t rows) {
  const int64_t work = bytes * rows;
  if (groups * work <= kSerialBytes) return groups;
  const int64_t even = groups / (pool().threads() * 4);
  return std::max<int64_t>(1, std::min(even, std::max<int64_t>(1, kChunkBytes / bytes)));
}

}  // namespace

void multiply(const Path& path, const Matrix& matrix, const Inputs& inputs, int64_t count, float* out, int64_t stride) {
  const int64_t groups = groups_of(matrix.outputs), bytes = group_bytes(matrix.format, inputs.width());
  const int64_t row_bytes = inputs.width() * (matrix.format == kBF16 ? 4 : 1);
  const int64_t rows = std::max<int64_t>(8, kCacheBytes / row_bytes / 8 * 8);
  for (int64_t m = 0; m < count; m += rows) {
    const int64_t here = std::min(rows, count - m), step = groups_at_once(groups, bytes, here);
    const Task task{matrix.format,  matrix.packed, inputs.rows() + m, here, inputs.width(),
                    matrix.outputs, out + m * stride, stride};
    parallel((groups + step - 1) / step, [&](int64_t chunk) {
      path.run(task, chunk * step, std::min((chunk + 1) * step, groups));
    });
  }
}

void product(const Path& path, Format format, const float* x, int64_t count, int64_t inputs, const uint8_t* packed,
             int64_t outputs, float* out) {
  Lease arena;
  Inputs rows(path, *arena, count, inputs, format != kBF16, format == kBF16);
  for_rows(count, inputs, [&](int64_t m) { rows.set(m, x + m * inputs); });
  multiply(path, {format, packed, outputs}, rows, count, out, outputs);
}

const Path* find_path(const char* name) {
  for (const Path* path : kPaths)
    if (path->supported() && (!name || std::strcmp(name, path->name) == 0)) return path;
  return nullptr;
}

namespace {

std::atomic<const Path*>& path_in_use() {
  static std::atomic<const Path*> path{find_path(nullptr)};
  return path;
}

}  // namespace

const Path& best_path() { return *path_in_use(); }

bool use_path(const char* name) {
  const Path* path = find_path(name);
  if (path) path_in_use() = path;
  return path != nullptr;
}

}  // namespace gemmule
