// What Python sees of whole blocks: two XLA custom calls. An absent weight is an array without elements.
#include <cstdint>

#include "blocks.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace gemmule {
namespace {

// The weights of a block in the order of its call; the first thing that does not fit is remembered.
class Weights {
 public:
  explicit Weights(const ffi::RemainingArgs& args) : args_(args) {}

  const float* vector(size_t index, int64_t size) {
    const auto found = args_.get<ffi::Buffer<ffi::F32>>(index);
    if (!found.has_value()) return fail("a norm or bias is not float32");
    if (found->element_count() == 0) return nullptr;
    if (static_cast<int64_t>(found->element_count()) != size) return fail("a norm or bias has another size");
    return found->typed_data();
  }

  Matrix matrix(size_t index, int64_t format, int64_t inputs, int64_t outputs) {
    const auto found = args_.get<ffi::Buffer<ffi::U8>>(index);
    if (!found.has_value()) return fail("a matrix is not packed"), Matrix{};
    if (found->element_count() == 0) return {};
    if (format < 0 || format >= kFormats) return fail("unknown format of packed weights"), Matrix{};
    const auto kind = static_cast<Format>(format);
    if (static_cast<int64_t>(found->size_bytes()) != groups_of(outputs) * group_bytes(kind, inputs))
      return fail("packed weights have another shape"), Matrix{};
    return {kind, found->typed_data(), outputs};
  }

  std::nullptr_t fail(const char* why) {
    if (!failure_) failure_ = why;
    return nullptr;
  }

  ffi::Error error() const { return failure_ ? ffi::Error::InvalidArgument(failure_) : ffi::Error::Success(); }

 private:
  const ffi::RemainingArgs& args_;
  const char* failure_ = nullptr;
};

// Outputs of a part's matrix: its own and those of the parts joined to it.
int64_t joined_outputs(ffi::Span<const int64_t> widths, ffi::Span<const int64_t> formats, int part) {
  int64_t outputs = widths[part];
  while (++part < kParts && formats[part] < 0) outputs += widths[part];
  return outputs;
}

ffi::Error attention_block(ffi::Buffer<ffi::F32> hidden, ffi::Buffer<ffi::S32> slots, ffi::Buffer<ffi::S32> positions,
                           ffi::Buffer<ffi::F32> cosine, ffi::Buffer<ffi::F32> sine, ffi::AnyBuffer keys,
                           ffi::AnyBuffer values, ffi::RemainingArgs rest, int64_t heads, int64_t window, float scale,
                           float softcap, float epsilon, int64_t norm_values, ffi::Span<const int64_t> widths,
                           ffi::Span<const int64_t> formats, ffi::ResultBuffer<ffi::F32> out,
                           ffi::RemainingRets caches) {
  const auto h = hidden.dimensions(), k = keys.dimensions();
  const int64_t size = k[3], width = h[2], total = heads * size;
  const bool wide = keys.element_type() == ffi::F32;
  if (keys.element_type() != values.element_type() || (!wide && keys.element_type() != ffi::BF16))
    return ffi::Error::InvalidArgument("keys and values must be bfloat16 or float32");
  const bool writes = widths.size() == kParts && widths[1] > 0;
  if (size % 16 || heads % k[1] || widths.size() != kParts || widths[0] != total ||
      (writes && widths[1] != k[1] * size))
    return ffi::Error::InvalidArgument("heads do not fit the cache");
  if (cosine.element_count() != static_cast<size_t>(h[0] * h[1] * size / 2))
    return ffi::Error::InvalidArgument("rotations do not fit the heads");
  AttentionBlock block{};
  Weights weights(rest);
  block.hidden = hidden.typed_data();
  block.batch = h[0], block.time = h[1], block.width = width, block.epsilon = epsilon;
  block.input_norm = weights.vector(0, width);
  for (int part = 0; part < kParts; ++part) {
    block.widths[part] = widths[part];
    block.biases[part] = weights.vector(1 + part, widths[part]);
    block.parts[part] = weights.matrix(8 + part, formats[part], width, joined_outputs(widths, formats, part));
  }
  block.query_norm = weights.vector(4, size);
  block.key_norm = weights.vector(5, size);
  block.norm_heads = block.query_norm != nullptr;
  block.norm_values = norm_values != 0;
  block.output_bias = weights.vector(6, width);
  block.post_norm = weights.vector(7, width);
  block.output = weights.matrix(11, formats[3], total, width);
  if (!block.parts[0].packed || !block.output.packed) weights.fail("queries or outputs have no matrix");
  if (ffi::Error error = weights.error(); error.failure()) return error;
  block.cosine = cosine.typed_data(), block.sine = sine.typed_data();
  block.attention = {nullptr, 0,    keys.untyped_data(), values.untyped_data(), wide, slots.typed_data(),
                     positions.typed_data(), h[0], h[1], heads, k[1], k[2], size, k[0], scale, softcap, window,
                     nullptr};
  if (writes) {
    auto new_keys = caches.get<ffi::AnyBuffer>(0), new_values = caches.get<ffi::AnyBuffer>(1);
    if (!new_keys.has_value() || !new_values.has_value() || (*new_keys)->untyped_data() != keys.untyped_data() ||
        (*new_values)->untyped_data() != values.untyped_data())
      return ffi::Error::Internal("the cache is not written in place: it was not donated");
    block.keys = keys.untyped_data(), block.values = values.untyped_data();
  }
  block.out = out->typed_data();
  run_block(best_path(), block);
  return ffi::Error::Success();
}

ffi::Error feed_forward_block(ffi::Buffer<ffi::F32> hidden, ffi::RemainingArgs rest, int64_t inner, int64_t activation,
                              float epsilon, ffi::Span<const int64_t> formats,
                              ffi::ResultBuffer<ffi::F32> out) {
  const auto h = hidden.dimensions();
  const int64_t width = h[1];
  if (activation < 0 || activation >= kActivations) return ffi::Error::InvalidArgument("unknown activation");
  Weights weights(rest);
  FeedForwardBlock block{};
  block.hidden = hidden.typed_data();
  block.count = h[0], block.width = width, block.inner = inner, block.epsilon = epsilon;
  block.input_norm = weights.vector(0, width);
  block.post_norm = weights.vector(1, width);
  block.gate = weights.matrix(2, formats[0], width, formats[1] < 0 ? 2 * inner : inner);
  block.up = weights.matrix(3, formats[1], width, inner);
  block.down = weights.matrix(4, formats[2], inner, width);
  if (!block.gate.packed || !block.down.packed) weights.fail("a feed-forward network has no matrix");
  if (ffi::Error error = weights.error(); error.failure()) return error;
  block.activation = static_cast<Activation>(activation);
  block.out = out->typed_data();
  run_block(best_path(), block);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace gemmule

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemmule_attention_block, gemmule::attention_block,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Attr<int64_t>("heads")
                                  .Attr<int64_t>("window")
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<float>("epsilon")
                                  .Attr<int64_t>("norm_values")
                                  .Attr<ffi::Span<const int64_t>>("widths")
                                  .Attr<ffi::Span<const int64_t>>("formats")
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(gemmule_feed_forward_block, gemmule::feed_forward_block,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .RemainingArgs()
                                  .Attr<int64_t>("inner")
                                  .Attr<int64_t>("activation")
                                  .Attr<float>("epsilon")
                                  .Attr<ffi::Span<const int64_t>>("formats")
                                  .Ret<ffi::Buffer<ffi::F32>>());
