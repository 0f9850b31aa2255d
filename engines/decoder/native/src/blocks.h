// The two halves of a decoder layer, each as one call: every row's result depends on nothing but the row.
#pragma once

#include <cstdint>

#include "activations.h"
#include "attention.h"
#include "product.h"

namespace gemmule {

constexpr int kParts = 3;  // queries, keys, values

// hidden + post_norm(output(attention(project(norm(hidden))))). Null pointers mean that the model has no such part.
struct AttentionBlock {
  const float* hidden;  // [batch * time, width]
  int64_t batch, time, width;
  float epsilon;
  const float* input_norm;
  // A matrix with no bytes is a part of the matrix before it; `widths` are the outputs of each part, 0 for none.
  Matrix parts[kParts];
  int64_t widths[kParts];
  const float* biases[kParts];
  const float* query_norm;
  const float* key_norm;
  bool norm_heads;   // queries and keys; query_norm and key_norm are their scales
  bool norm_values;  // without a scale
  const float* cosine;  // [batch * time, size / 2]
  const float* sine;
  // `query` and `out` are set by the block; keys and values are written where widths[1] > 0.
  AttentionTask attention;
  void* keys;
  void* values;
  Matrix output;
  const float* output_bias;
  const float* post_norm;
  float* out;  // like hidden
};

// hidden + post_norm(down(activation(gate(norm(hidden))) * up(norm(hidden)))).
struct FeedForwardBlock {
  const float* hidden;  // [count, width]
  int64_t count, width, inner;
  float epsilon;
  const float* input_norm;
  Matrix gate, up;  // `up` without bytes is the second half of `gate`
  Activation activation;
  Matrix down;
  const float* post_norm;
  float* out;  // like hidden
};

void run_block(const Path& path, AttentionBlock block);
void run_block(const Path& path, const FeedForwardBlock& block);

}  // namespace gemmule
