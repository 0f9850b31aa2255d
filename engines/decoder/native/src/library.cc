// What Python sees of single operations: XLA custom calls, and a few C functions for packing, called through ctypes.
#include <cstdint>

#include "activations.h"
#include "attend.h"
#include "pack.h"
#include "pool.h"
#include "product.h"
#include "store.h"
#include "xla/ffi/api/ffi.h"

#ifndef GEMMULE_SOURCES
#define GEMMULE_SOURCES 0
#endif

namespace ffi = xla::ffi;

namespace gemmule {
namespace {

ffi::Error check(int64_t format, int64_t inputs, int64_t outputs, size_t bytes) {
  if (format < 0 || format >= kFormats) return ffi::Error::InvalidArgument("unknown format of packed weights");
  const int64_t needed = groups_of(outputs) * group_bytes(static_cast<Format>(format), inputs);
  if (static_cast<int64_t>(bytes) != needed) return ffi::Error::InvalidArgument("packed weights have another shape");
  return ffi::Error::Success();
}

ffi::Error matmul(ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::U8> packed, int64_t format,
                  ffi::ResultBuffer<ffi::F32> out) {
  const int64_t count = x.dimensions()[0], inputs = x.dimensions()[1], outputs = out->dimensions()[1];
  if (ffi::Error error = check(format, inputs, outputs, packed.size_bytes()); error.failure()) return error;
  product(best_path(), static_cast<Format>(format), x.typed_data(), count, inputs, packed.typed_data(), outputs,
          out->typed_data());
  return ffi::Error::Success();
}

ffi::Error rows(ffi::Buffer<ffi::U8> packed, ffi::Buffer<ffi::S32> ids, int64_t format, int64_t outputs,
                ffi::ResultBuffer<ffi::F32> out) {
  const int64_t inputs = out->dimensions()[1];
  if (ffi::Error error = check(format, inputs, outputs, packed.size_bytes()); error.failure()) return error;
  for (int64_t m = 0; m < static_cast<int64_t>(ids.element_count()); ++m) {
    int64_t id = ids.typed_data()[m];  // clamped, as XLA's own gather does
    id = id < 0 ? 0 : id >= outputs ? outputs - 1 : id;
    unpack_row(static_cast<Format>(format), packed.typed_data(), id, inputs, out->typed_data() + m * inputs);
  }
  return ffi::Error::Success();
}

ffi::Error attention(ffi::Buffer<ffi::F32> query, ffi::AnyBuffer keys, ffi::AnyBuffer values,
                     ffi::Buffer<ffi::S32> slots, ffi::Buffer<ffi::S32> positions, float scale, float softcap,
                     int64_t window, ffi::ResultBuffer<ffi::F32> out) {
  const auto q = query.dimensions(), k = keys.dimensions();
  const bool wide = keys.element_type() == ffi::F32;
  if (keys.element_type() != values.element_type() || (!wide && keys.element_type() != ffi::BF16))
    return ffi::Error::InvalidArgument("keys and values must be bfloat16 or float32");
  if (q[3] % 16 || q[3] != k[3] || q[2] % k[1]) return ffi::Error::InvalidArgument("heads do not fit the cache");
  attend(best_path(), {query.typed_data(), q[2] * q[3], keys.untyped_data(), values.untyped_data(), wide, slots.typed_data(),
                       positions.typed_data(), q[0], q[1], q[2], k[1], k[2], q[3], k[0], scale, softcap, window,
                       out->typed_data()});
  return ffi::Error::Success();
}

ffi::Error write(ffi::AnyBuffer cache, ffi::Buffer<ffi::F32> fresh, ffi::Buffer<ffi::S32> slots,
                 ffi::Buffer<ffi::S32> positions, ffi::Result<ffi::AnyBuffer> out) {
  const auto c = cache.dimensions(), f = fresh.dimensions();
  if (out->untyped_data() != cache.untyped_data())
    return ffi::Error::Internal("the cache is not written in place: it was not donated");
  if (f[2] != c[1] || f[3] != c[3]) return ffi::Error::InvalidArgument("keys do not fit the cache");
  const bool wide = cache.element_type() == ffi::F32;
  if (!wide && cache.element_type() != ffi::BF16)
    return ffi::Error::InvalidArgument("the cache must be bfloat16 or float32");
  for (int64_t token = 0; token < f[0] * f[1]; ++token) {
    const StoreTask task{slots.typed_data()[token / f[1]], positions.typed_data()[token], c[1], c[2], c[3], c[0]};
    store_token(task, fresh.typed_data() + token * f[2] * f[3], wide, out->untyped_data());
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace gemmule

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemmule_matmul, gemmule::matmul,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Attr<int64_t>("format")
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemmule_rows, gemmule::rows,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Attr<int64_t>("format")
                                  .Attr<int64_t>("outputs")
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemmule_attention, gemmule::attention,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int64_t>("window")
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemmule_write, gemmule::write,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());

extern "C" {

const char* gemmule_path() { return gemmule::best_path().name; }

void gemmule_set_threads(int32_t threads) { gemmule::set_threads(threads); }

// Which sources this was built from: `sources.digest`.
int64_t gemmule_sources() { return GEMMULE_SOURCES; }

// Threads that share a product; starts them.
int32_t gemmule_threads() { return gemmule::pool().threads(); }

// The layout of a storage type's packed weights, or -1 where there is no kernel.
int32_t gemmule_format(int32_t storage) { return gemmule::format_of(storage); }

int64_t gemmule_packed_bytes(int32_t storage, int64_t outputs, int64_t inputs) {
  const int32_t format = gemmule::format_of(storage);
  if (format < 0 || inputs % gemmule::block_of(storage)) return -1;
  return gemmule::groups_of(outputs) * gemmule::group_bytes(static_cast<gemmule::Format>(format), inputs);
}

void gemmule_pack(int32_t storage, const uint8_t* rows, int64_t outputs, int64_t inputs, uint8_t* out) {
  gemmule::pack(storage, rows, outputs, inputs, out);
}

// Makes every later call take the path of this name, null the fastest, for checks; false where there is none.
bool gemmule_use_path(const char* name) { return gemmule::use_path(name); }

// One product, for checks.
void gemmule_product(int32_t storage, const float* x, int64_t count, int64_t inputs, const uint8_t* packed,
                     int64_t outputs, float* out) {
  const auto format = static_cast<gemmule::Format>(gemmule::format_of(storage));
  gemmule::product(gemmule::best_path(), format, x, count, inputs, packed, outputs, out);
}

// The operations between products, one after the other, for checks: a norm of x [size],
// its rotation as one head, the gate of the result with `up`, and a sum with x -> out [4, size].
void gemmule_glue(int32_t activation, const float* x, const float* up, const float* scale, const float* cosine,
                  const float* sine, int64_t size, float* out) {
  const gemmule::GluePath& glue = gemmule::best_path().glue;
  float *rotated = out + size, *gated = out + 2 * size, *sum = out + 3 * size;
  glue.norm(x, scale, size, 1e-6f, out);
  for (int64_t i = 0; i < size; ++i) rotated[i] = out[i];
  glue.rotate(rotated, cosine, sine, size / 2);
  glue.gate(static_cast<gemmule::Activation>(activation), rotated, up, size, gated);
  glue.add(gated, x, size, sum);
}

}  // extern "C"
