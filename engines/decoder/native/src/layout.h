// How packed weights lie in memory, shared by the packer, every kernel and the row look-up.
//
// Sixteen output rows make a group; a group's inputs come in blocks of 32. One "line" is 64 bytes: four
// consecutive inputs of each of the sixteen rows, so that one byte-dot-product instruction serves all rows and
// no horizontal sum is ever needed. A group holds the codes of all its blocks first, then its scales.
//
//   kQ8    8 lines a block, codes as unsigned (value + 128); then 16 half scales a block
//   kQ4    4 lines a block, step j in the low, step j+4 in the high nibbles (value + 8); 16 half scales a block
//   kQ4K   codes as kQ4 (value as is); per 256 inputs: 8x16 scales, 8x16 minima (bytes), 16 d, 16 dmin (half)
//   kQ6K   4 lines of low nibbles, 2 lines of 2-bit highs (value + 32); per 256: 16x16 int8 scales, 16 d, padding
//   kBF16  lines of two consecutive inputs of sixteen rows; no scales
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemmule {

enum Format : int32_t { kQ8 = 0, kQ4 = 1, kQ4K = 2, kQ6K = 3, kBF16 = 4, kFormats = 5 };

constexpr int kRows = 16;         // rows of a group
constexpr int kBlock = 32;        // inputs of a block, also of one activation scale
constexpr int kSuper = 256;       // inputs of a K-quant superblock
constexpr int kLine = 64;         // bytes of a line
constexpr int kQ4KMeta = 320;     // bytes of scales of a kQ4K superblock
constexpr int kQ6KMeta = 320;     // bytes of scales of a kQ6K superblock, 32 of them padding

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

inline int64_t groups_of(int64_t rows) { return (rows + kRows - 1) / kRows; }

// Bytes of codes of one block of a group.
inline int64_t code_bytes(Format format) {
  switch (format) {
    case kQ8: return 8 * kLine;
    case kQ6K: return 6 * kLine;
    case kBF16: return 16 * kLine;
    default: return 4 * kLine;
  }
}

// Inputs rounded up to whole blocks.
inline int64_t blocks_of(int64_t inputs) { return (inputs + kBlock - 1) / kBlock; }

inline int64_t scale_bytes(Format format, int64_t inputs) {
  switch (format) {
    case kQ8:
    case kQ4: return round_up(blocks_of(inputs) * kRows * 2, kLine);
    case kQ4K: return inputs / kSuper * kQ4KMeta;
    case kQ6K: return inputs / kSuper * kQ6KMeta;
    default: return 0;
  }
}

inline int64_t group_bytes(Format format, int64_t inputs) {
  return blocks_of(inputs) * code_bytes(format) + scale_bytes(format, inputs);
}

}  // namespace gemmule
