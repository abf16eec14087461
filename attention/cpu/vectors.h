// Vectors of the width that the compiler's flags allow.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace longspan {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kMaxVectors = 4;  // of a product's right rows
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kMaxVectors = 2;
#else
constexpr int kLanes = 4;
#if defined(__aarch64__)
constexpr int kMaxVectors = 4;  // 32 registers
#else
constexpr int kMaxVectors = 2;
#endif
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t WordVec __attribute__((vector_size(kLanes * 4)));

template <class V>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
inline void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

#define INLINE __attribute__((always_inline)) inline

inline Vec all(float x) { return Vec{} + x; }

// The greater; b where either is NaN.
inline Vec greater(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

inline bool any(IntVec mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif defined(__AVX__)
  return _mm256_movemask_ps((__m256)mask);
#else
  int32_t found = 0;
  for (int i = 0; i < kLanes; ++i) found |= mask[i];
  return found;
#endif
}

constexpr float kLog2E = 1.44269504088896340736f;

// e^x for x <= 87, to 2e-7 relative; some 1e-38 for anything below -87. NaN stays NaN.
inline Vec exp(Vec x) {
  x = greater(all(-87.f), x);
  const Vec shifted = x * kLog2E + 12582912.f;  // 1.5 * 2^23: the low bits of the sum are x / ln 2 rounded
  const Vec whole = shifted - 12582912.f, part = x * kLog2E - whole;
  Vec y = part * 1.326465905e-3f + 9.671565979e-3f;  // 2^part: minimax on [-0.5, 0.5], exact at 0
  y = y * part + 5.550734388e-2f;
  y = y * part + 2.402224127e-1f;
  y = y * part + 6.931469770e-1f;
  y = y * part + 1.f;
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)y, (__m512)whole);
#else
  return y * (Vec)(((IntVec)shifted << 23) + (127 << 23));
#endif
}

}  // namespace longspan
