// Products. What is multiplied comes in 32-bit words: a float, or two bfloat16 neighbours along the depth.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace longspan {

struct Float32 {
  using Word = float;
  using Words = Vec;
  static constexpr int kDepth = 1;  // numbers a word
  static void accumulate(Vec& sum, Word left, Words right) { sum += left * right; }
};

#if defined(__AVX512BF16__)
struct BFloat16Pair {
  using Word = uint32_t;
  using Words = WordVec;
  static constexpr int kDepth = 2;
  static void accumulate(Vec& sum, Word left, Words right) {
    const __m512i broadcast = _mm512_set1_epi32((int)left);
    sum = (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)broadcast, (__m512bh)right);
  }
};
#endif

template <class Operand>
struct Left {
  const typename Operand::Word* data;
  int64_t row, step;  // from one left row, one step of depth to the next, in words
};

template <class Operand>
struct Right {
  const typename Operand::Word* data;
  int64_t step;
};

template <class Operand, int kRows, int kVectors>
INLINE void multiply_block(Left<Operand> left, Right<Operand> right, int64_t depth, float* result, int64_t row, bool add) {
  Vec sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[i][v] = add ? load<Vec>(result + i * row + v * kLanes) : Vec{};
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    typename Operand::Words words[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) words[v] = load<typename Operand::Words>(right.data + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const auto word = left.data[i * left.row];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) Operand::accumulate(sum[i][v], word, words[v]);
    }
    left.data += left.step;
    right.data += right.step;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(result + i * row + v * kLanes, sum[i][v]);
}

// result (kRows, columns) = or += left (kRows, depth) times right (depth, columns), columns a multiple of kLanes.
// Inlined, so that strides that the caller knows become constants: worth 5 %.
template <class Operand, int kRows>
INLINE void multiply(Left<Operand> left, Right<Operand> right, int64_t depth, float* result, int64_t row, int columns,
              bool add) {
  while (columns > 0) {
    const int vectors = std::min(columns / kLanes, kMaxVectors);
    switch (vectors) {
      case 1: multiply_block<Operand, kRows, 1>(left, right, depth, result, row, add); break;
      case 2: multiply_block<Operand, kRows, 2>(left, right, depth, result, row, add); break;
#if defined(__AVX512F__) || defined(__aarch64__)
      case 3: multiply_block<Operand, kRows, 3>(left, right, depth, result, row, add); break;
      case 4: multiply_block<Operand, kRows, 4>(left, right, depth, result, row, add); break;
#endif
    }
    columns -= vectors * kLanes;
    right.data += vectors * kLanes;
    result += vectors * kLanes;
  }
}

}  // namespace longspan
