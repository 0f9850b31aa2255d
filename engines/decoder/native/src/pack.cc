#include "pack.h"

#include <cstring>

#include "half.h"

namespace gemmule {
namespace {

constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct StorageType {
  int32_t storage;
  Format format;
  int64_t inputs;  // of one block
  int64_t bytes;
};

// Q5_0 and IQ4_NL have integer codes under one scale: Q8 holds them exactly.
constexpr StorageType kTypes[] = {
    {kQ4_0, kQ4, 32, 18},      {kQ5_0, kQ8, 32, 22},      {kQ8_0, kQ8, 32, 34},     {kQ4_K, kQ4K, 256, 144},
    {kQ6_K, kQ6K, 256, 210},   {kIQ4_NL, kQ8, 32, 18},    {kBF16Rows, kBF16, 1, 2},
};

const StorageType* find(int32_t storage) {
  for (const StorageType& type : kTypes)
    if (type.storage == storage) return &type;
  return nullptr;
}

// Where byte i of a row's 32 codes lies inside a block of whole-byte lines.
inline int64_t place(int64_t row, int64_t i) { return i / 4 * kLine + row * 4 + i % 4; }

// The signed codes of a 32-block whose values are code * scale.
void codes_of(int32_t storage, const uint8_t* block, int8_t* codes) {
  if (storage == kQ8_0) {
    std::memcpy(codes, block + 2, 32);
  } else if (storage == kIQ4_NL) {
    for (int i = 0; i < 16; ++i) {
      codes[i] = kIq4Values[block[2 + i] & 15];
      codes[i + 16] = kIq4Values[block[2 + i] >> 4];
    }
  } else {  // Q5_0: four bytes of fifth bits, then nibbles
    uint32_t fifth;
    std::memcpy(&fifth, block + 2, 4);
    for (int i = 0; i < 16; ++i) {
      codes[i] = static_cast<int8_t>(((block[6 + i] & 15) | (fifth >> i & 1) << 4) - 16);
      codes[i + 16] = static_cast<int8_t>(((block[6 + i] >> 4) | (fifth >> (i + 16) & 1) << 4) - 16);
    }
  }
}

// The half scale of block k, of a format with one for each block.
inline int64_t half_at(Format format, int64_t k, int64_t row) {
  return scales_at(format, k) + (k % 2 * kRows + row) * 2;
}

void pack_q8(int32_t storage, const uint8_t* from, int64_t row, int64_t blocks, int64_t bytes, uint8_t* group) {
  for (int64_t k = 0; k < blocks; ++k, from += bytes) {
    int8_t codes[32];
    codes_of(storage, from, codes);
    uint8_t* block = group + codes_at(kQ8, k);
    for (int i = 0; i < 32; ++i) block[place(row, i)] = static_cast<uint8_t>(codes[i]) ^ 128;
    std::memcpy(group + half_at(kQ8, k, row), from, 2);
  }
}

// Thirty-two 4-bit codes to four lines: code i of the first sixteen in low, of the last in high nibbles.
void put_nibbles(const uint8_t* codes, int64_t row, uint8_t* block) {
  for (int i = 0; i < 16; ++i) block[place(row, i)] = static_cast<uint8_t>(codes[i] | codes[i + 16] << 4);
}

void pack_q4(const uint8_t* from, int64_t row, int64_t blocks, uint8_t* group) {
  for (int64_t k = 0; k < blocks; ++k, from += 18) {
    uint8_t* block = group + codes_at(kQ4, k);
    // The file, too, has the first sixteen in low nibbles.
    for (int i = 0; i < 16; ++i) block[place(row, i)] = from[2 + i];
    std::memcpy(group + half_at(kQ4, k, row), from, 2);
  }
}

void pack_q4k(const uint8_t* from, int64_t row, int64_t blocks, uint8_t* group) {
  for (int64_t k = 0; k < blocks; k += 8, from += 144) {
    uint8_t* meta = group + scales_at(kQ4K, k);
    const uint8_t* packed = from + 4;
    for (int b = 0; b < 8; ++b) {  // six bits each: four plain pairs, then four with their high bits apart
      const bool first = b < 4;
      meta[b * kRows + row] = first ? packed[b] & 63 : (packed[b + 4] & 15) | (packed[b - 4] >> 6) << 4;
      meta[(8 + b) * kRows + row] = first ? packed[b + 4] & 63 : (packed[b + 4] >> 4) | (packed[b] >> 6) << 4;
    }
    std::memcpy(meta + 16 * kRows + 2 * row, from, 2);
    std::memcpy(meta + 18 * kRows + 2 * row, from + 2, 2);
    for (int b = 0; b < 8; ++b) {
      uint8_t codes[32];  // 64 inputs share 32 bytes: the first half in low, the second in high nibbles
      const uint8_t* pair = from + 16 + b / 2 * 32;
      for (int i = 0; i < 32; ++i) codes[i] = b % 2 ? pair[i] >> 4 : pair[i] & 15;
      put_nibbles(codes, row, group + codes_at(kQ4K, k + b));
    }
  }
}

void pack_q6k(const uint8_t* from, int64_t row, int64_t blocks, uint8_t* group) {
  for (int64_t k = 0; k < blocks; k += 8, from += 210) {
    uint8_t* meta = group + scales_at(kQ6K, k);
    for (int s = 0; s < 16; ++s) meta[s * kRows + row] = from[192 + s];
    std::memcpy(meta + 16 * kRows + 2 * row, from + 208, 2);
    for (int b = 0; b < 8; ++b) {
      uint8_t* block = group + codes_at(kQ6K, k + b);
      // 128 inputs share 64 low bytes and 32 high bytes: quarter q of them is 32 inputs.
      const int half = b / 4, quarter = b % 4;
      const uint8_t* low = from + half * 64 + quarter % 2 * 32;
      const uint8_t* high = from + 128 + half * 32;
      uint8_t codes[32];
      for (int i = 0; i < 32; ++i) {
        codes[i] = quarter < 2 ? low[i] & 15 : low[i] >> 4;
        const int bits = high[i] >> (2 * quarter) & 3;
        block[(4 + i / 16) * kLine + row * 4 + i % 4] |= static_cast<uint8_t>(bits << (2 * (i % 16 / 4)));
      }
      put_nibbles(codes, row, block);
    }
  }
}

void pack_bf16(const uint8_t* from, int64_t row, int64_t inputs, uint8_t* group) {
  for (int64_t k = 0; k < inputs; ++k)
    std::memcpy(group + k / 2 * kLine + row * 4 + k % 2 * 2, from + 2 * k, 2);
}

}  // namespace

int32_t format_of(int32_t storage) {
  const StorageType* type = find(storage);
  return type ? type->format : -1;
}

int64_t block_of(int32_t storage) { return find(storage)->inputs; }

void pack(int32_t storage, const uint8_t* rows, int64_t outputs, int64_t inputs, uint8_t* out) {
  const StorageType& type = *find(storage);
  const int64_t row_bytes = inputs / type.inputs * type.bytes, bytes = group_bytes(type.format, inputs);
  const int64_t blocks = blocks_of(inputs);
  for (int64_t n = 0; n < outputs; ++n, rows += row_bytes) {
    uint8_t* group = out + n / kRows * bytes;
    const int64_t row = n % kRows;
    switch (type.format) {
      case kQ8: pack_q8(storage, rows, row, blocks, type.bytes, group); break;
      case kQ4: pack_q4(rows, row, blocks, group); break;
      case kQ4K: pack_q4k(rows, row, blocks, group); break;
      case kQ6K: pack_q6k(rows, row, blocks, group); break;
      default: pack_bf16(rows, row, inputs, group); break;
    }
  }
}

void unpack_row(Format format, const uint8_t* packed, int64_t n, int64_t inputs, float* out) {
  const uint8_t* group = packed + n / kRows * group_bytes(format, inputs);
  const int64_t row = n % kRows;
  for (int64_t k = 0; k < inputs; ++k) {
    const int64_t b = k / kBlock, i = k % kBlock;
    const uint8_t *block = group + codes_at(format, b), *meta = group + scales_at(format, b);
    const uint8_t nibble = format == kQ8 ? 0 : block[place(row, i % 16)] >> (i < 16 ? 0 : 4) & 15;
    if (format == kQ8) {
      out[k] = half_to_float(group + half_at(format, b, row)) * (block[place(row, i)] - 128);
    } else if (format == kQ4) {
      out[k] = half_to_float(group + half_at(format, b, row)) * (nibble - 8);
    } else if (format == kQ4K) {
      const float d = half_to_float(meta + 16 * kRows + 2 * row), dmin = half_to_float(meta + 18 * kRows + 2 * row);
      out[k] = d * meta[b % 8 * kRows + row] * nibble - dmin * meta[(8 + b % 8) * kRows + row];
    } else if (format == kQ6K) {
      const int bits = block[(4 + i / 16) * kLine + row * 4 + i % 4] >> (2 * (i % 16 / 4)) & 3;
      const int8_t scale = static_cast<int8_t>(meta[(2 * (b % 8) + i / 16) * kRows + row]);
      out[k] = half_to_float(meta + 16 * kRows + 2 * row) * scale * ((nibble | bits << 4) - 32);
    } else {
      const uint8_t* at = group + k / 2 * kLine + row * 4 + k % 2 * 2;
      const uint32_t bits = static_cast<uint32_t>(at[0] | at[1] << 8) << 16;
      std::memcpy(out + k, &bits, 4);
    }
  }
}

}  // namespace gemmule
