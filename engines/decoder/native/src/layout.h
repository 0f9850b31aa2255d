// How packed weights lie in memory, shared by the packer, every kernel and the row look-up.
//
// Sixteen output rows make a group; a group's inputs come in blocks of 32. One "line" is 64 bytes: four
// consecutive inputs of each of the sixteen rows, so that one byte-dot-product instruction serves all rows and
// no horizontal sum is ever needed. Codes and scales lie in the order in which a product reads them: with any gap
// or second stream the processor's prefetcher gives up, and a core reads at half its rate (tests/bench/LOG.md).
// A group is a row of units, each its scales and then the codes of its blocks:
//
//   kQ8    two blocks: 2x16 half scales; 8 lines a block, codes as unsigned (value + 128)
//   kQ4    two blocks: 2x16 half scales; 4 lines a block, step j in low, step j+4 in high nibbles (value + 8)
//   kQ4K   eight blocks: 8x16 scales, 8x16 minima (bytes), 16 d, 16 dmin (half); codes as kQ4 (value as is)
//   kQ6K   eight blocks: 16x16 int8 scales, 16 d, padding; 4 lines of low nibbles and 2 of 2-bit highs (value + 32)
//   kBF16  lines of two consecutive inputs of sixteen rows; no scales
//
// The last unit of kQ8 and kQ4 may have one block only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemmule {

enum Format : int32_t { kQ8 = 0, kQ4 = 1, kQ4K = 2, kQ6K = 3, kBF16 = 4, kFormats = 5 };

constexpr int kRows = 16;         // rows of a group
constexpr int kBlock = 32;        // inputs of a block, also of one activation scale
constexpr int kSuper = 256;       // inputs of a K-quant superblock
constexpr int kLine = 64;         // bytes of a line
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

// Blocks of a unit.
inline int64_t unit_blocks(Format format) {
  switch (format) {
    case kQ8:
    case kQ4: return 2;
    case kQ4K:
    case kQ6K: return kSuper / kBlock;
    default: return 1;
  }
}

// Bytes of scales at the start of a unit.
inline int64_t scale_bytes(Format format) {
  switch (format) {
    case kQ8:
    case kQ4: return kLine;
    case kQ4K:
    case kQ6K: return 5 * kLine;
    default: return 0;
  }
}

inline int64_t unit_bytes(Format format) { return scale_bytes(format) + unit_blocks(format) * code_bytes(format); }

// Where the scales of block k's unit lie inside a group.
inline int64_t scales_at(Format format, int64_t k) { return k / unit_blocks(format) * unit_bytes(format); }

// Where the codes of block k lie inside a group.
inline int64_t codes_at(Format format, int64_t k) {
  return scales_at(format, k) + scale_bytes(format) + k % unit_blocks(format) * code_bytes(format);
}

inline int64_t group_bytes(Format format, int64_t inputs) {
  const int64_t blocks = blocks_of(inputs), units = (blocks + unit_blocks(format) - 1) / unit_blocks(format);
  return blocks * code_bytes(format) + units * scale_bytes(format);
}

}  // namespace gemmule
