// Repacks the rows of a GGUF tensor into the layout of layout.h, and unpacks single rows again.
#pragma once

#include <cstdint>

#include "layout.h"

namespace gemmule {

// Storage types as GGUF numbers them.
enum Storage : int32_t { kQ4_0 = 2, kQ5_0 = 6, kQ8_0 = 8, kQ4_K = 12, kQ6_K = 14, kIQ4_NL = 20, kBF16Rows = 30 };

// The layout that serves a storage type, or -1.
int32_t format_of(int32_t storage);

// The number of inputs must be a multiple of this.
int64_t block_of(int32_t storage);

// `rows` lie back to back as in the file; `out` holds groups_of(outputs) * group_bytes and is zeroed already.
void pack(int32_t storage, const uint8_t* rows, int64_t outputs, int64_t inputs, uint8_t* out);

// Row `row` of a packed matrix as floats.
void unpack_row(Format format, const uint8_t* packed, int64_t row, int64_t inputs, float* out);

}  // namespace gemmule
