// Rows of tensors: read, written, and packed as operands.
#pragma once

#include <cstdint>
#include <cmath>
#include <cstring>

#include "call.h"
#include "products.h"

namespace longspan {

inline float from_bfloat16(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

inline uint16_t to_bfloat16(float x) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_float16(uint16_t x) {
#if defined(__F16C__)
  return _cvtsh_ss(x);
#else
  const uint32_t sign = (uint32_t)(x & 0x8000) << 16, magnitude = (uint32_t)(x & 0x7fff) << 13;
  float y, scale;
  const uint32_t exponent = 239u << 23;  // 2^112, which also makes subnormal numbers normal
  std::memcpy(&y, &magnitude, 4);
  std::memcpy(&scale, &exponent, 4);
  y *= scale;
  uint32_t bits;
  std::memcpy(&bits, &y, 4);
  bits |= sign | ((x & 0x7c00) == 0x7c00 ? 0x7f800000u : 0);  // infinite and NaN
  std::memcpy(&y, &bits, 4);
  return y;
#endif
}

inline uint16_t to_float16(float x) {
#if defined(__F16C__)
  return _cvtss_sh(x, 0);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00);  // rounds above 65504
  if (magnitude < 0x38800000) {                                     // subnormal: units of 2^-24
    float y;
    std::memcpy(&y, &magnitude, 4);
    return (uint16_t)(sign | (uint32_t)std::nearbyint(y * 16777216.f));
  }
  return (uint16_t)(sign | ((magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13));
#endif
}

struct Row {  // one row of one head
  const Call& call;
  const char* data;
  int64_t column;

  Row(const Call& c, const Tensor& tensor, int64_t batch, int64_t head, int64_t row, int64_t dtype)
      : call(c), column(tensor.column) {
    const int64_t offset = batch * tensor.batch + head * tensor.head + row * tensor.row;
    data = (const char*)tensor.data + offset * (dtype == kFloat32 ? 4 : 2);
  }
};

inline void prefetch(const Row& row) {
  const int64_t bytes = row.call.width * (row.call.dtype == kFloat32 ? 4 : 2);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row.data + i);
}

// A row as floats.
inline void read_row(const Row& row, int64_t dtype, float* to) {
  const int64_t width = row.call.width;
  if (dtype == kFloat32) {
    const float* from = (const float*)row.data;
    if (row.column == 1)
      std::memcpy(to, from, width * sizeof(float));
    else
      for (int64_t i = 0; i < width; ++i) to[i] = from[i * row.column];
  } else {
    const uint16_t* from = (const uint16_t*)row.data;
    if (dtype == kBFloat16)
      for (int64_t i = 0; i < width; ++i) to[i] = from_bfloat16(from[i * row.column]);
    else
      for (int64_t i = 0; i < width; ++i) to[i] = from_float16(from[i * row.column]);
  }
}

// Floats times `factor` as a row.
inline void write_row(const Row& row, int64_t dtype, const float* from, float factor) {
  const int64_t width = row.call.width;
  if (dtype == kFloat32) {
    float* to = (float*)row.data;
    for (int64_t i = 0; i < width; ++i) to[i * row.column] = from[i] * factor;
  } else {
    uint16_t* to = (uint16_t*)row.data;
    if (dtype == kBFloat16)
      for (int64_t i = 0; i < width; ++i) to[i * row.column] = to_bfloat16(from[i] * factor);
    else
      for (int64_t i = 0; i < width; ++i) to[i * row.column] = to_float16(from[i] * factor);
  }
}

inline void add_row(const Row& row, const float* from, float factor) {
  float* to = (float*)row.data;
  for (int64_t i = 0; i < row.call.width; ++i) to[i * row.column] += from[i] * factor;
}

// A row as words, the rest up to `padded` numbers 0.
inline void pack_row(Float32, const Row& row, float* to, int64_t padded) {
  read_row(row, row.call.dtype, to);
  for (int64_t i = row.call.width; i < padded; ++i) to[i] = 0;
}

#if defined(__AVX512BF16__)
inline void pack_row(BFloat16Pair, const Row& row, uint32_t* to, int64_t padded) {
  const uint16_t* from = (const uint16_t*)row.data;
  uint16_t* halves = (uint16_t*)to;
  const int64_t width = row.call.width;
  if (row.column == 1)
    std::memcpy(halves, from, width * sizeof(uint16_t));
  else
    for (int64_t i = 0; i < width; ++i) halves[i] = from[i * row.column];
  for (int64_t i = width; i < padded; ++i) halves[i] = 0;
}

// Rows (count, padded) to pairs of rows, number by number: (count / 2, padded) words.
inline void pair_rows(const uint32_t* rows, int64_t count, int64_t padded, uint32_t* pairs) {
  typedef uint16_t Halves __attribute__((vector_size(32)));
  const uint16_t* from = (const uint16_t*)rows;
  for (int64_t i = 0; i < count; i += 2)
    for (int64_t c = 0; c < padded; c += 16) {
      const auto even = __builtin_convertvector(load<Halves>(from + i * padded + c), WordVec);
      const auto odd = __builtin_convertvector(load<Halves>(from + (i + 1) * padded + c), WordVec);
      store(pairs + i / 2 * padded + c, even | odd << 16);
    }
}
#endif

typedef uint32_t Quad __attribute__((vector_size(16)));
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Quad){__VA_ARGS__})
#endif

// Words (rows, width) to (width, rows); both multiples of 4.
inline void transpose(const void* from, int64_t rows, int64_t width, void* to) {
  const uint32_t* source = (const uint32_t*)from;
  uint32_t* target = (uint32_t*)to;
  for (int64_t i = 0; i < rows; i += 4)
    for (int64_t c = 0; c < width; c += 4) {
      const uint32_t* at = source + i * width + c;
      const Quad a = load<Quad>(at), b = load<Quad>(at + width);
      const Quad d = load<Quad>(at + 2 * width), e = load<Quad>(at + 3 * width);
      const Quad ab_low = SHUFFLE(a, b, 0, 4, 1, 5), ab_high = SHUFFLE(a, b, 2, 6, 3, 7);
      const Quad de_low = SHUFFLE(d, e, 0, 4, 1, 5), de_high = SHUFFLE(d, e, 2, 6, 3, 7);
      uint32_t* out = target + c * rows + i;
      store(out, SHUFFLE(ab_low, de_low, 0, 1, 4, 5));
      store(out + rows, SHUFFLE(ab_low, de_low, 2, 3, 6, 7));
      store(out + 2 * rows, SHUFFLE(ab_high, de_high, 0, 1, 4, 5));
      store(out + 3 * rows, SHUFFLE(ab_high, de_high, 2, 3, 6, 7));
    }
}

}  // namespace longspan
