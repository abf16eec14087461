// Windowed attention on a CPU: one softmax over a list of keys of which each row sees an interval (see pattern.py).
//
// Queries lie across the vector lanes. For a block of 64 queries and a tile of 96 keys the scores are kept transposed,
// scores[key][query], so that the softmax needs no horizontal sums, and so that each of the seven matrix products
//
//     scores = K Q'      grad_weights = V dO'         left rows are keys,    depth is the head's width
//     O += P V           dQ += dS K                   left rows are queries, depth is keys
//     dV += P' dO        dK += dS' Q                  left rows are keys,    depth is queries
//
// is the same product of a few left rows, broadcast one number at a time, with right rows in vectors: `multiply`, with
// the sums in registers. Six left rows by four vectors of 16 use 24 of AVX-512's 32 registers. A group of 16
// queries is the grain of visibility: products skip the keys that nobody in the group sees, and only the edges of a
// group's range are masked. Keys and values are packed once for a run of blocks ("segment"), which also undoes
// strides and dilation and converts the dtype; a block's queries are packed transposed.
//
// The backward pass computes scores again from the saved logsumexp. A segment adds to the gradients of the keys around
// it. Segments are at least as long as the window is wide, so that every other one may run at the same time: first the
// even ones, then the odd ones. Gradients of global keys get a slot a segment, summed in order. No atomics, and
// the same bits whatever the number of threads.
//
// Compiled once for each instruction set by cpu.py, without torch's headers: of torch it uses two C functions.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// torch's thread pool, from its stable C interface (torch/csrc/stable/c/shim.h).
extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                                      void* context);
extern "C" int32_t torch_get_num_threads(uint32_t* threads);

// ---- What the caller passes; cpu.py mirrors these structures. Strides are in elements.

enum Dtype : int64_t { kFloat32, kBFloat16, kFloat16 };

struct Tensor {  // (batch, heads, rows, width)
  void* data;
  int64_t batch, head, row, column;
};

struct Call {
  int64_t batch, heads, length, width, dtype;
  Tensor query, key, value, query_global, key_global, value_global;
  Tensor output, logsumexp, grad;                       // logsumexp is float (B, H, N, 1)
  Tensor grad_query, grad_key, grad_value;              // of keys and values: float, zero at first
  Tensor grad_query_global, grad_key_global, grad_value_global;
  const int64_t* dilation;                              // (H)
  const int64_t* variant;                               // (H): which band bounds are a head's
  const int32_t *band_first, *band_last;                // (variants, B or 1, N), in places of the strip
  int64_t band_batch;                                   // stride of the batch, 0 where the bounds are shared
  int64_t window;                                       // in places of a strip, at most the length
  const uint8_t* hidden;                                // (B, N) keys that no band shows, or null
  const uint8_t* holes;                                 // (B, N) keys that no global row sees, or null
  int64_t globals;                                      // entries of the longest list of global tokens
  const int32_t* global_index;                          // (B, G)
  const int32_t *column_first, *column_last;            // (B, N)
  const int32_t *row_first, *row_last;                  // (B, G)
  double scale;
  double keep;                                          // 1 - dropout_p
  int64_t drop_below;                                   // hashes below are dropped; 0 where nothing is
  const int32_t *local_low, *local_high;                // dropout's row states (B, H, N)
  const int32_t *global_low, *global_high;              // (B, H, G)
};

namespace {

// ---- Vectors

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kMaxVectors = 4;  // of a product's right rows
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kMaxVectors = 2;
#else
constexpr int kLanes = 4;
constexpr int kMaxVectors = 2;
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

// ---- Products. What is multiplied comes in 32-bit words: a float, or two bfloat16 neighbours along the depth.

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
#if defined(__AVX512F__)
      case 3: multiply_block<Operand, kRows, 3>(left, right, depth, result, row, add); break;
      case 4: multiply_block<Operand, kRows, 4>(left, right, depth, result, row, add); break;
#endif
    }
    columns -= vectors * kLanes;
    right.data += vectors * kLanes;
    result += vectors * kLanes;
  }
}

// ---- Memory of one worker

std::atomic<int64_t> scratch_now{0}, scratch_peak{0};

template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(); }

  // Room for `count`, contents undefined.
  T* reserve(int64_t count) {
    if (count > count_) {
      release();
      data_ = static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64));
      if (data_ == nullptr) throw std::bad_alloc();
      count_ = count;
      const int64_t now = scratch_now += count * (int64_t)sizeof(T);
      int64_t peak = scratch_peak;
      while (now > peak && !scratch_peak.compare_exchange_weak(peak, now)) {
      }
    }
    return data_;
  }
  T* get() const { return data_; }

 private:
  void release() {
    std::free(data_);
    scratch_now -= count_ * (int64_t)sizeof(T);
    data_ = nullptr;
    count_ = 0;
  }
  T* data_ = nullptr;
  int64_t count_ = 0;
};

// ---- Rows of tensors

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

// ---- Lists of rows and keys

constexpr int kGroup = 16;              // queries whose visible keys are bounded together
constexpr int kBlock = 64;              // queries at a time
constexpr int kGroups = kBlock / kGroup;
constexpr int kPanel = 6;               // keys at a time
constexpr int kTile = 96;               // keys between two steps of the softmax
constexpr int kPanels = kTile / kPanel;
constexpr int kVectors = kBlock / kLanes;
constexpr int kGroupVectors = kGroup / kLanes;
constexpr int64_t kSegment = 512;       // rows that share packed keys, at least
constexpr int64_t kChunk = kTile * 8;   // packed keys of a global row's pass

inline int64_t down(int64_t x, int64_t step) { return x / step * step; }
inline int64_t up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// The places of a list in the sequence: start, start + step, … or those of an index.
struct Places {
  const int32_t* index;
  int64_t start, step, count;
  int64_t operator[](int64_t i) const { return index ? index[i] : start + i * step; }
};

// Rows of one example and head that share a softmax over one or two lists of keys.
struct Rows {
  int64_t batch, head;
  Places places;
  const Tensor *query, *grad_query;
  const int32_t *low, *high;  // dropout's row states

  // Where the row's bounds and dropout state stand: at its position, or its place in the list of global tokens.
  int64_t entry(int64_t i) const { return places.index ? i : places[i]; }
};

struct Keys {
  Places places;
  const Tensor *key, *value;
  const int32_t *first, *last;  // the interval of the list that a row sees
  const uint8_t* hidden;        // by position, or null
};

inline Rows strip_rows(const Call& call, int64_t batch, int64_t head, int64_t residue) {
  const int64_t step = call.dilation[head], at = (batch * call.heads + head) * call.length;
  return {batch,
          head,
          {nullptr, residue, step, (call.length - residue + step - 1) / step},
          &call.query,
          &call.grad_query,
          call.local_low ? call.local_low + at : nullptr,
          call.local_low ? call.local_high + at : nullptr};
}

inline Rows global_rows(const Call& call, int64_t batch, int64_t head) {
  const int64_t at = (batch * call.heads + head) * call.globals;
  // An example with fewer global tokens leaves the end of its list unused: rows that see nothing.
  const int32_t* last = call.row_last + batch * call.globals;
  const int64_t used = std::partition_point(last, last + call.globals, [](int32_t end) { return end > 0; }) - last;
  return {batch,
          head,
          {call.global_index + batch * call.globals, 0, 0, used},
          &call.query_global,
          &call.grad_query_global,
          call.global_low ? call.global_low + at : nullptr,
          call.global_low ? call.global_high + at : nullptr};
}

inline Keys band_keys(const Call& call, const Rows& rows) {
  const int64_t batches = call.band_batch ? call.batch : 1;
  const int64_t at = call.variant[rows.head] * batches * call.length + rows.batch * call.band_batch;
  return {rows.places,
          &call.key,
          &call.value,
          call.band_first + at,
          call.band_last + at,
          call.hidden ? call.hidden + rows.batch * call.length : nullptr};
}

inline Keys column_keys(const Call& call, const Rows& rows) {
  const int64_t at = rows.batch * call.length;
  return {{call.global_index + rows.batch * call.globals, 0, 0, call.globals},
          &call.key,
          &call.value,
          call.column_first + at,
          call.column_last + at,
          nullptr};
}

inline Keys sequence_keys(const Call& call, const Rows& rows) {
  const int64_t at = rows.batch * call.globals;
  return {{nullptr, 0, 1, call.length},
          &call.key_global,
          &call.value_global,
          call.row_first + at,
          call.row_last + at,
          call.holes ? call.holes + rows.batch * call.length : nullptr};
}

// The keys that rows [begin, end) see, as a range of the list; empty where they see none.
struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

inline Range range_of(const Rows& rows, const Keys& keys, int64_t begin, int64_t end) {
  Range range{std::numeric_limits<int64_t>::max(), 0};
  for (int64_t i = begin; i < end; ++i) {
    const int64_t at = rows.entry(i);
    if (keys.first[at] >= keys.last[at]) continue;
    range.begin = std::min<int64_t>(range.begin, keys.first[at]);
    range.end = std::max<int64_t>(range.end, keys.last[at]);
  }
  return range;
}

// What a block of rows sees of a list of keys.
struct Sight {
  alignas(64) int32_t first[kBlock], last[kBlock];
  int64_t low, high;                        // anybody, [low, high)
  int64_t begin[kGroups], end[kGroups];     // anybody of a group; neither falls from group to group
  int64_t inner_begin[kGroups], inner_end[kGroups];  // everybody of a group

  Sight(const Rows& rows, const Keys& keys, int64_t row, int64_t count) {
    constexpr int64_t kFar = std::numeric_limits<int32_t>::max();
    low = kFar;
    high = 0;
    for (int g = 0; g < kGroups; ++g) {
      begin[g] = inner_end[g] = kFar;
      end[g] = inner_begin[g] = 0;
      for (int i = g * kGroup; i < (g + 1) * kGroup; ++i) {
        const int64_t at = i < count ? rows.entry(row + i) : -1;
        const bool some = at >= 0 && keys.first[at] < keys.last[at];
        first[i] = some ? keys.first[at] : (int32_t)kFar;
        last[i] = some ? keys.last[at] : 0;
        if (some) {
          begin[g] = std::min<int64_t>(begin[g], first[i]);
          end[g] = std::max<int64_t>(end[g], last[i]);
        }
        inner_begin[g] = std::max<int64_t>(inner_begin[g], first[i]);
        inner_end[g] = std::min<int64_t>(inner_end[g], last[i]);
      }
      low = std::min(low, begin[g]);
      high = std::max(high, end[g]);
    }
    // The groups that share a panel of keys are computed as one run of lanes: a group between two that see a panel
    // takes part in it, masked.
    for (int g = 1; g < kGroups; ++g) end[g] = std::max(end[g], end[g - 1]);
    for (int g = kGroups - 2; g >= 0; --g) begin[g] = std::min(begin[g], begin[g + 1]);
  }
};

// A tile of keys against a block: for each group the panels it takes part in, and those it need not mask.
struct Tile {
  int64_t key;  // the first, a multiple of kPanel
  int begin[kGroups], end[kGroups], inner_begin[kGroups], inner_end[kGroups];
  int first_panel, last_panel;
  int first_group[kPanels], last_group[kPanels];  // that take part in a panel, [first, last)

  Tile(const Sight& sight, int64_t at, Range range, bool masked) : key(at), first_panel(kPanels), last_panel(0) {
    for (int g = 0; g < kGroups; ++g) {
      begin[g] = panel(down(std::max(sight.begin[g], range.begin) - at, kPanel));
      end[g] = panel(up(std::min(sight.end[g], range.end) - at, kPanel));
      inner_begin[g] = std::max(begin[g], panel(up(sight.inner_begin[g] - at, kPanel)));
      inner_end[g] = std::min(end[g], panel(down(sight.inner_end[g] - at, kPanel)));
      if (masked || inner_begin[g] >= inner_end[g]) inner_begin[g] = inner_end[g] = std::max(begin[g], end[g]);
      if (begin[g] >= end[g]) continue;
      first_panel = std::min(first_panel, begin[g]);
      last_panel = std::max(last_panel, end[g]);
    }
    for (int panel = first_panel; panel < last_panel; ++panel) {
      first_group[panel] = kGroups;
      last_group[panel] = 0;
      for (int g = 0; g < kGroups; ++g)
        if (begin[g] <= panel && panel < end[g]) {
          first_group[panel] = std::min(first_group[panel], g);
          last_group[panel] = g + 1;
        }
    }
  }

 private:
  static int panel(int64_t keys) { return (int)std::min<int64_t>(std::max<int64_t>(keys, 0) / kPanel, kPanels); }
};

// ---- The work on packed operands

template <class Operand>
struct PackedKeys {
  using Word = typename Operand::Word;
  Range range;                              // of the list; begins at a multiple of kPanel
  Buffer<Word> key, value;                  // rows, (keys, width)
  Buffer<Word> key_pairs, value_pairs;      // pairs of rows, where words are pairs
  Buffer<float> grad_key, grad_value;       // (keys, width)
  Buffer<int32_t> position;
  Buffer<uint8_t> hidden;
  bool any_hidden;

  bool hides(int64_t from, int64_t count) const {
    return any_hidden && std::memchr(hidden.get() + from, 1, count) != nullptr;
  }
};

struct Need {
  bool pairs_of_key, pairs_of_value, gradients;
};

// kWidth: the padded width of a head where it is known in advance, else 0.
template <class Operand, int kWidth>
class Worker {
 public:
  using Word = typename Operand::Word;

  explicit Worker(const Call& c)
      : call(c),
        padded(up(c.width, 16)),
        scale((float)c.scale),
        dropping(c.drop_below > 0) {
    scores.reserve(kTile * kBlock);
    result.reserve(kBlock * width());
    if (Operand::kDepth == 1) return;
    for (auto* buffer : {&weight_halves, &weight_words, &gradient_halves, &gradient_words})
      buffer->reserve(kTile * kBlock / 2);
  }

  // -- Packing

  void pack(PackedKeys<Operand>& packed, const Rows& rows, const Keys& keys, Range range, Need need) {
    range.begin = down(range.begin, kPanel);
    packed.range = range;
    const int64_t count = up(range.end - range.begin, kPanel), real = range.end - range.begin;
    Word* key = packed.key.reserve(count * words());
    Word* value = packed.value.reserve(count * words());
    int32_t* position = packed.position.reserve(count);
    uint8_t* hidden = packed.hidden.reserve(count);
    packed.any_hidden = false;
    for (int64_t i = 0; i < real; ++i) {
      const int64_t at = keys.places[range.begin + i], soon = keys.places[range.begin + std::min(i + 8, real - 1)];
      prefetch(Row(call, *keys.key, rows.batch, rows.head, soon, call.dtype));
      prefetch(Row(call, *keys.value, rows.batch, rows.head, soon, call.dtype));
      pack_row(Operand(), Row(call, *keys.key, rows.batch, rows.head, at, call.dtype), key + i * words(), width());
      pack_row(Operand(), Row(call, *keys.value, rows.batch, rows.head, at, call.dtype), value + i * words(), width());
      position[i] = (int32_t)at;
      hidden[i] = keys.hidden ? keys.hidden[at] : 0;
      packed.any_hidden |= hidden[i];
    }
    std::fill(key + real * words(), key + count * words(), Word(0));
    std::fill(value + real * words(), value + count * words(), Word(0));
    std::fill(position + real, position + count, 0);
    std::fill(hidden + real, hidden + count, 0);
    if constexpr (Operand::kDepth == 2) {
      if (need.pairs_of_key) pair_rows(key, count, width(), packed.key_pairs.reserve(count / 2 * width()));
      if (need.pairs_of_value) pair_rows(value, count, width(), packed.value_pairs.reserve(count / 2 * width()));
    }
    if (need.gradients) {
      std::fill_n(packed.grad_key.reserve(count * width()), count * width(), 0.f);
      std::fill_n(packed.grad_value.reserve(count * width()), count * width(), 0.f);
    }
  }

  // The rows [row, row + count) of a list, count <= kBlock; for the backward pass with gradients and logsumexp.
  void take_block(const Rows& list, int64_t row, bool backward, bool pairs) {
    rows = &list;
    first_row = row;
    row_count = (int)std::min<int64_t>(kBlock, list.places.count - row);
    take_operand(*list.query, query_rows, query_columns, pairs ? &query_pairs : nullptr);
    if (dropping)
      for (int i = 0; i < kBlock; ++i) {
        const int64_t at = list.entry(row + std::min(i, row_count - 1));
        drop_low[i] = list.low[at];
        drop_high[i] = list.high[at];
      }
    for (int64_t i = row + kBlock; i < std::min(row + 2 * kBlock, list.places.count); ++i) {  // the next block
      prefetch(Row(call, *list.query, list.batch, list.head, list.places[i], call.dtype));
      if (!backward) continue;
      prefetch(Row(call, call.grad, list.batch, list.head, list.places[i], call.dtype));
      prefetch(Row(call, call.output, list.batch, list.head, list.places[i], call.dtype));
    }
    if (!backward) return;
    take_operand(call.grad, grad_rows, grad_columns, pairs ? &grad_pairs : nullptr);
    float* left = line.reserve(2 * width());
    for (int i = 0; i < kBlock; ++i) {
      delta[i] = logsumexp[i] = 0;
      if (i >= row_count) continue;
      const int64_t at = list.places[row + i];
      const Row saved(call, call.logsumexp, list.batch, list.head, at, kFloat32);
      logsumexp[i] = *(const float*)saved.data;
      read_row(Row(call, call.output, list.batch, list.head, at, call.dtype), call.dtype, left);
      read_row(Row(call, call.grad, list.batch, list.head, at, call.dtype), call.dtype, left + width());
      Vec sum{};
      int64_t c = 0;
      for (; c + kLanes <= call.width; c += kLanes) sum += load<Vec>(left + c) * load<Vec>(left + width() + c);
      for (int lane = 0; lane < kLanes; ++lane) delta[i] += sum[lane];
      for (; c < call.width; ++c) delta[i] += left[c] * left[width() + c];
    }
  }

  // -- Forward

  void begin_forward() {
    std::fill_n(reference, kBlock, kNothing);
    std::fill_n(total, kBlock, 0.f);
    std::fill_n(result.get(), kBlock * width(), 0.f);
  }

  // One more list of keys, or a part of one, in the block's softmax.
  void attend(const Sight& sight, const PackedKeys<Operand>& keys) {
    for_tiles(sight, keys, [&](const Tile& tile) {
      score(tile, keys.key.get(), keys.range.begin, query_columns.get(), scores.get());
      for (int g = 0; g < kGroups; ++g) {
        if (tile.begin[g] >= tile.end[g]) continue;
        for (int v = g * kGroupVectors; v < (g + 1) * kGroupVectors; ++v)
          dropping ? soften<true>(sight, keys, tile, g, v) : soften<false>(sight, keys, tile, g, v);
        gather(tile, g, weight_pairs(), pairs_or(keys.value_pairs, keys.value), keys.range.begin);
      }
    });
  }

  void end_forward() {
    for (int i = 0; i < row_count; ++i) {
      const int64_t at = rows->places[first_row + i];
      const bool nothing = total[i] == 0;
      const float factor = nothing ? 0.f : 1.f / (total[i] * (float)call.keep);
      write_row(Row(call, call.output, rows->batch, rows->head, at, call.dtype), call.dtype,
                result.get() + i * width(), factor);
      const Row saved(call, call.logsumexp, rows->batch, rows->head, at, kFloat32);
      *(float*)saved.data =
          nothing ? std::numeric_limits<float>::infinity() : reference[i] + std::log(total[i]);
    }
  }

  // -- Backward

  void begin_backward() {
    std::fill_n(result.get(), kBlock * width(), 0.f);
    grad_scores.reserve(kTile * kBlock);
  }

  // Adds to the gradients of the block's queries and of the packed keys, as wanted.
  void differentiate(const Sight& sight, PackedKeys<Operand>& keys, bool of_queries, bool of_keys) {
    for_tiles(sight, keys, [&](const Tile& tile) {
      score(tile, keys.key.get(), keys.range.begin, query_columns.get(), scores.get());
      score(tile, keys.value.get(), keys.range.begin, grad_columns.get(), grad_scores.get());
      for (int g = 0; g < kGroups; ++g)
        if (tile.begin[g] < tile.end[g])
          for (int v = g * kGroupVectors; v < (g + 1) * kGroupVectors; ++v)
            dropping ? soften_gradient<true>(sight, keys, tile, g, v) : soften_gradient<false>(sight, keys, tile, g, v);
      if (of_keys) {
        scatter(tile, weight_rows(), pairs_or(grad_pairs, grad_rows), keys.grad_value.get(), keys.range.begin);
        scatter(tile, gradient_rows(), pairs_or(query_pairs, query_rows), keys.grad_key.get(), keys.range.begin);
      }
      if (of_queries)
        for (int g = 0; g < kGroups; ++g)
          if (tile.begin[g] < tile.end[g])
            gather(tile, g, gradient_pairs(), pairs_or(keys.key_pairs, keys.key), keys.range.begin);
    });
  }

  void end_backward() {
    for (int i = 0; i < row_count; ++i)
      write_row(Row(call, *rows->grad_query, rows->batch, rows->head, rows->places[first_row + i], call.dtype),
                call.dtype, result.get() + i * width(), (float)call.scale);
  }

  // The packed keys' gradients to where they belong.
  void put_key_gradients(const PackedKeys<Operand>& packed, const Rows& list, const Keys& keys,
                         const Tensor& grad_key, const Tensor& grad_value) {
    for (int64_t i = 0; i < packed.range.end - packed.range.begin; ++i) {
      const int64_t at = keys.places[packed.range.begin + i];
      add_row(Row(call, grad_key, list.batch, list.head, at, kFloat32), packed.grad_key.get() + i * width(),
              (float)call.scale);
      add_row(Row(call, grad_value, list.batch, list.head, at, kFloat32), packed.grad_value.get() + i * width(),
              (float)(1 / call.keep));
    }
  }

  // Of a packed row: numbers, words.
  int64_t width() const { return kWidth ? kWidth : padded; }
  int64_t words() const { return width() / Operand::kDepth; }

  const Call& call;
  PackedKeys<Operand> band, columns;

 private:
  static constexpr float kNothing = -1e30f;  // the reference of a row that has seen nothing
  static constexpr float kSlack = 6;         // how far a score may exceed the reference

  template <class B>
  const Word* pairs_or(const B& pairs, const B& single) const {
    return Operand::kDepth == 2 ? pairs.get() : single.get();
  }

  void take_operand(const Tensor& tensor, Buffer<Word>& single, Buffer<Word>& columns_, Buffer<Word>* pairs) {
    Word* to = single.reserve(kBlock * words());
    for (int i = 0; i < row_count; ++i)
      pack_row(Operand(), Row(call, tensor, rows->batch, rows->head, rows->places[first_row + i], call.dtype),
               to + i * words(), width());
    std::fill(to + row_count * words(), to + kBlock * words(), Word(0));
    transpose(to, kBlock, words(), columns_.reserve(kBlock * words()));
    if constexpr (Operand::kDepth == 2)
      if (pairs) pair_rows(to, kBlock, width(), pairs->reserve(kBlock / 2 * width()));
  }

  template <class Visit>
  void for_tiles(const Sight& sight, const PackedKeys<Operand>& keys, Visit visit) {
    const int64_t low = std::max(sight.low, keys.range.begin), high = std::min(sight.high, keys.range.end);
    for (int64_t at = down(low, kPanel); at < high; at += kTile) {
      const int64_t in_tile = std::min<int64_t>(kTile, up(keys.range.end - at, kPanel));
      visit(Tile(sight, at, keys.range, keys.hides(at - keys.range.begin, in_tile)));
    }
  }

  // to (keys, kBlock) = left rows of keys times right (words, kBlock), for the panels and lanes that matter.
  void score(const Tile& tile, const Word* left, int64_t origin, const Word* right, float* to) {
    for (int panel = tile.first_panel; panel < tile.last_panel; ++panel) {
      const int first = tile.first_group[panel], last = tile.last_group[panel];
      const int64_t key = tile.key - origin + panel * kPanel;
      multiply<Operand, kPanel>({left + key * words(), words(), 1}, {right + first * kGroup, kBlock}, words(),
                                to + panel * kPanel * kBlock + first * kGroup, kBlock, (last - first) * kGroup, false);
    }
  }

  // A group's rows of the result += weights (their lanes) times right rows of keys.
  void gather(const Tile& tile, int g, const Word* weights, const Word* right, int64_t origin) {
    constexpr int kSteps = kPanel / Operand::kDepth;
    const int64_t step = (int64_t)tile.begin[g] * kSteps, depth = (int64_t)(tile.end[g] - tile.begin[g]) * kSteps;
    const Word* left = weights + step * kBlock + g * kGroup;
    right += ((tile.key - origin) / Operand::kDepth + step) * width();
    float* to = result.get() + g * kGroup * width();
    static_assert(kGroup == 6 + 5 + 5);
    multiply<Operand, 6>({left, 1, kBlock}, {right, width()}, depth, to, width(), (int)width(), true);
    multiply<Operand, 5>({left + 6, 1, kBlock}, {right, width()}, depth, to + 6 * width(), width(), (int)width(), true);
    multiply<Operand, 5>({left + 11, 1, kBlock}, {right, width()}, depth, to + 11 * width(), width(), (int)width(), true);
  }

  // Rows of keys += weights (keys, kBlock) times right rows of queries.
  void scatter(const Tile& tile, const Word* weights, const Word* right, float* to, int64_t origin) {
    constexpr int kRow = kBlock / Operand::kDepth, kStep = kGroup / Operand::kDepth;
    for (int panel = tile.first_panel; panel < tile.last_panel; ++panel) {
      const int first = tile.first_group[panel], last = tile.last_group[panel];
      const int64_t key = tile.key - origin + panel * kPanel;
      multiply<Operand, kPanel>({weights + panel * kPanel * kRow + first * kStep, kRow, 1},
                                {right + first * kStep * width(), width()}, (last - first) * kStep, to + key * width(),
                                width(), (int)width(), true);
    }
  }

  // -- Elementwise steps on one vector of queries, key after key

  struct Lane {
    IntVec first, last;
    WordVec low, high;
  };

  Lane lane(const Sight& sight, int v) const {
    Lane of{load<IntVec>(sight.first + v * kLanes), load<IntVec>(sight.last + v * kLanes), {}, {}};
    if (dropping) {
      of.low = load<WordVec>(drop_low + v * kLanes);
      of.high = load<WordVec>(drop_high + v * kLanes);
    }
    return of;
  }

  // Which queries see a key of the tile.
  static IntVec sees(const Lane& of, const PackedKeys<Operand>& keys, int64_t key) {
    if (keys.hidden.get()[key - keys.range.begin]) return IntVec{};
    const int32_t at = (int32_t)key;
    return (of.first <= at) & (of.last > at);
  }

  // Which queries keep a key's weight: the hash of dropout.py.
  IntVec keeps(const Lane& of, const PackedKeys<Operand>& keys, int64_t key) const {
    WordVec x = (of.low ^ (uint32_t)keys.position.get()[key - keys.range.begin]) * 0x21f0aaadu;
    x ^= of.high;
    x ^= x >> 15;
    x *= 0xd35a2d97u;
    return x >= (uint32_t)call.drop_below;
  }

  // A step for the panels that are masked in front, not masked, and masked behind.
  template <class Step>
  static void for_panels(const Tile& tile, int g, Step step) {
    using Masked = std::true_type;
    using Plain = std::false_type;
    step(Masked(), tile.begin[g], tile.inner_begin[g]);
    step(Plain(), tile.inner_begin[g], tile.inner_end[g]);
    step(Masked(), tile.inner_end[g], tile.end[g]);
  }

  // Scores to weights, relative to a reference that is raised only where a score exceeds it by far: rarely after
  // the first tile, as the sum has room for e^6.
  template <bool kDropout>
  void soften(const Sight& sight, const PackedKeys<Operand>& keys, const Tile& tile, int g, int v) {
    const Lane of = lane(sight, v);
    float* at = scores.get() + v * kLanes;
    Vec peak = all(kNothing), other = peak;
    for_panels(tile, g, [&](auto masked, int begin, int end) {
      for (int k = begin * kPanel; k < end * kPanel; k += 2) {
        Vec even = load<Vec>(at + k * kBlock) * scale, odd = load<Vec>(at + (k + 1) * kBlock) * scale;
        if constexpr (masked) {
          even = sees(of, keys, tile.key + k) ? even : all(kNothing);
          odd = sees(of, keys, tile.key + k + 1) ? odd : all(kNothing);
        }
        peak = greater(even, peak);
        other = greater(odd, other);
      }
    });
    peak = greater(other, peak);
    Vec base = load<Vec>(reference + v * kLanes), sum = load<Vec>(total + v * kLanes);
    const IntVec raised = peak > base + kSlack;
    if (any(raised)) {
      const Vec next = raised ? peak : base;
      if (any(sum != 0)) {
        alignas(64) float factor[kLanes];
        const Vec shrink = exp(base - next);
        store(factor, shrink);
        sum *= shrink;
        for (int i = 0; i < kLanes; ++i) {
          float* row = result.get() + (v * kLanes + i) * width();
          for (int64_t c = 0; c < width(); ++c) row[c] *= factor[i];
        }
      }
      base = next;
      store(reference + v * kLanes, base);
    }
    Vec sum_odd{};
    for_panels(tile, g, [&](auto masked, int begin, int end) {
      for (int k = begin * kPanel; k < end * kPanel; k += 2) {
        Vec even = exp(load<Vec>(at + k * kBlock) * scale - base);
        Vec odd = exp(load<Vec>(at + (k + 1) * kBlock) * scale - base);
        if constexpr (masked) {
          even = sees(of, keys, tile.key + k) ? even : Vec{};
          odd = sees(of, keys, tile.key + k + 1) ? odd : Vec{};
        }
        sum += even;
        sum_odd += odd;
        if constexpr (kDropout) {
          even = keeps(of, keys, tile.key + k) ? even : Vec{};
          odd = keeps(of, keys, tile.key + k + 1) ? odd : Vec{};
        }
        put_weights<false>(Operand(), v, k, even, odd, scores, weight_halves, weight_words);
      }
    });
    store(total + v * kLanes, sum + sum_odd);
  }

  // Scores and the weights' gradients to weights and the scores' gradients.
  template <bool kDropout>
  void soften_gradient(const Sight& sight, const PackedKeys<Operand>& keys, const Tile& tile, int g, int v) {
    const Lane of = lane(sight, v);
    const float *at = scores.get() + v * kLanes, *grad_at = grad_scores.get() + v * kLanes;
    const Vec base = load<Vec>(logsumexp + v * kLanes), mean = load<Vec>(delta + v * kLanes);
    const float unkept = (float)(1 / call.keep);
    for_panels(tile, g, [&](auto masked, int begin, int end) {
      for (int k = begin * kPanel; k < end * kPanel; k += 2) {
        Vec weight[2], gradient[2];
        for (int i = 0; i < 2; ++i) {
          weight[i] = exp(load<Vec>(at + (k + i) * kBlock) * scale - base);
          gradient[i] = load<Vec>(grad_at + (k + i) * kBlock);
          IntVec kept;
          if constexpr (kDropout) {
            kept = keeps(of, keys, tile.key + k + i);
            gradient[i] = kept ? gradient[i] * unkept : Vec{};
          }
          gradient[i] = weight[i] * (gradient[i] - mean);
          if constexpr (kDropout) weight[i] = kept ? weight[i] : Vec{};
          if constexpr (masked) {
            const IntVec seen = sees(of, keys, tile.key + k + i);
            weight[i] = seen ? weight[i] : Vec{};
            gradient[i] = seen ? gradient[i] : Vec{};
          }
        }
        put_weights<true>(Operand(), v, k, weight[0], weight[1], scores, weight_halves, weight_words);
        put_gradients(Operand(), v, k, gradient[0], gradient[1]);
      }
    });
  }

  // Weights of keys k and k + 1, as operands: floats stay where they are; bfloat16 go beside, paired along the
  // queries (`halves`, for sums over queries) or along the keys (`pairs`, for sums over keys).
  template <bool kAlongQueries>
  static void put_weights(Float32, int v, int k, Vec even, Vec odd, Buffer<float>& to, Buffer<uint32_t>&,
                          Buffer<uint32_t>&) {
    store(to.get() + k * kBlock + v * kLanes, even);
    store(to.get() + (k + 1) * kBlock + v * kLanes, odd);
  }
  void put_gradients(Float32, int v, int k, Vec even, Vec odd) {
    put_weights<false>(Float32(), v, k, even, odd, grad_scores, gradient_halves, gradient_words);
  }

#if defined(__AVX512BF16__)
  template <bool kAlongQueries>
  static void put_weights(BFloat16Pair, int v, int k, Vec even, Vec odd, Buffer<float>&, Buffer<uint32_t>& halves,
                          Buffer<uint32_t>& pairs) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);  // 16 of even, 16 of odd
    if constexpr (kAlongQueries) {
      uint32_t* to = halves.get() + (k * kBlock + v * kLanes) / 2;
      _mm256_storeu_si256((__m256i*)to, _mm512_castsi512_si256(both));
      _mm256_storeu_si256((__m256i*)(to + kBlock / 2), _mm512_extracti64x4_epi64(both, 1));
    } else {
      const WordVec low = (WordVec)_mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
      const WordVec high = (WordVec)_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
      store(pairs.get() + k / 2 * kBlock + v * kLanes, low | high << 16);
    }
  }
  void put_gradients(BFloat16Pair, int v, int k, Vec even, Vec odd) {
    Buffer<float> none;
    put_weights<true>(BFloat16Pair(), v, k, even, odd, none, gradient_halves, gradient_words);
    put_weights<false>(BFloat16Pair(), v, k, even, odd, none, gradient_halves, gradient_words);
  }
#endif

  const Word* weight_pairs() { return (const Word*)(Operand::kDepth == 2 ? (void*)weight_words.get() : scores.get()); }
  const Word* weight_rows() { return (const Word*)(Operand::kDepth == 2 ? (void*)weight_halves.get() : scores.get()); }
  const Word* gradient_pairs() {
    return (const Word*)(Operand::kDepth == 2 ? (void*)gradient_words.get() : grad_scores.get());
  }
  const Word* gradient_rows() {
    return (const Word*)(Operand::kDepth == 2 ? (void*)gradient_halves.get() : grad_scores.get());
  }

  const int64_t padded;
  const float scale;
  const bool dropping;

  // The block
  const Rows* rows = nullptr;
  int64_t first_row = 0;
  int row_count = 0;
  alignas(64) int32_t drop_low[kBlock], drop_high[kBlock];
  alignas(64) float reference[kBlock], total[kBlock], logsumexp[kBlock], delta[kBlock];
  Buffer<Word> query_rows, query_columns, query_pairs, grad_rows, grad_columns, grad_pairs;
  Buffer<float> result;  // (kBlock, width): the output, or the queries' gradient
  Buffer<float> line;

  // The tile: (kTile, kBlock)
  Buffer<float> scores, grad_scores;
  Buffer<uint32_t> weight_halves, weight_words, gradient_halves, gradient_words;
};

// ---- The passes

// A run of rows of one strip, or of an example's global tokens, of one head.
struct Unit {
  int64_t batch, head, residue, begin, end, segment;
};

std::vector<Unit> band_units(const Call& call, int64_t segment) {
  std::vector<Unit> units;
  for (int64_t b = 0; b < call.batch; ++b)
    for (int64_t h = 0; h < call.heads; ++h)
      for (int64_t r = 0; r < std::min(call.dilation[h], call.length); ++r) {
        const int64_t count = strip_rows(call, b, h, r).places.count;
        for (int64_t i = 0; i < count; i += segment) units.push_back({b, h, r, i, std::min(i + segment, count), i / segment});
      }
  return units;
}

// Runs of `step` entries out of `count`, for each example and head.
std::vector<Unit> runs(const Call& call, int64_t count, int64_t step) {
  std::vector<Unit> units;
  for (int64_t b = 0; b < call.batch; ++b)
    for (int64_t h = 0; h < call.heads; ++h)
      for (int64_t i = 0; i < count; i += step) units.push_back({b, h, 0, i, std::min(i + step, count), i / step});
  return units;
}

// Calls body(worker, unit index) for each unit, on torch's threads; each takes the next unit when it is done.
template <class Worker, class Body>
void run(const Call& call, int64_t units, Body body) {
  struct Context {
    const Call& call;
    int64_t units;
    Body& body;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
  } context{call, units, body};
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  const auto work = [](int64_t, int64_t, void* pointer) {
    auto& shared = *static_cast<Context*>(pointer);
    try {
      Worker worker(shared.call);
      for (int64_t i; (i = shared.next++) < shared.units;) shared.body(worker, i);
    } catch (const std::bad_alloc&) {
      shared.failed = true;
      shared.next = shared.units;
    }
  };
  torch_parallel_for(0, std::min<int64_t>(threads, units), 1, work, &context);
  if (context.failed) throw std::bad_alloc();
}

template <class Worker>
void forward(const Call& call) {
  // Enough units for every thread; how rows are cut changes no bit of the result.
  uint32_t threads = 1;
  torch_get_num_threads(&threads);
  const int64_t share = call.batch * call.heads * call.length / (4 * (int64_t)threads);
  const auto band = band_units(call, up(std::clamp<int64_t>(share, kBlock, kSegment), kBlock));
  const auto global = runs(call, call.globals, kBlock);
  const int64_t count = band.size();
  const Need need{false, true, false};
  run<Worker>(call, count + global.size(), [&](Worker& worker, int64_t i) {
    if (i < count) {
      const Unit& unit = band[i];
      const Rows rows = strip_rows(call, unit.batch, unit.head, unit.residue);
      const Keys keys = band_keys(call, rows), columns = column_keys(call, rows);
      const Range range = range_of(rows, keys, unit.begin, unit.end);
      const Range global_range = call.globals ? range_of(rows, columns, unit.begin, unit.end) : Range{0, 0};
      if (!range.empty()) worker.pack(worker.band, rows, keys, range, need);
      if (!global_range.empty()) worker.pack(worker.columns, rows, columns, global_range, need);
      for (int64_t row = unit.begin; row < unit.end; row += kBlock) {
        const int64_t size = std::min<int64_t>(kBlock, unit.end - row);
        worker.take_block(rows, row, false, false);
        worker.begin_forward();
        if (!range.empty()) worker.attend(Sight(rows, keys, row, size), worker.band);
        if (!global_range.empty()) worker.attend(Sight(rows, columns, row, size), worker.columns);
        worker.end_forward();
      }
    }
  });
  // Global rows overwrite what the band left at their places.
  run<Worker>(call, global.size(), [&](Worker& worker, int64_t i) {
    const Unit& unit = global[i];
    const Rows rows = global_rows(call, unit.batch, unit.head);
    const Keys keys = sequence_keys(call, rows);
    if (unit.begin >= rows.places.count) return;
    const Sight sight(rows, keys, unit.begin, std::min(unit.end, rows.places.count) - unit.begin);
    worker.take_block(rows, unit.begin, false, false);
    worker.begin_forward();
    for (int64_t from = down(sight.low, kPanel); from < sight.high; from += kChunk) {
      worker.pack(worker.band, rows, keys, {from, std::min(from + kChunk, sight.high)}, need);
      worker.attend(sight, worker.band);
    }
    worker.end_forward();
  });
}

template <class Worker>
void backward(const Call& call) {
  const int64_t padded = up(call.width, 16);
  // Long enough that two segments with one between them share no key, and that the slots of the global keys'
  // gradients take no more room than the keys.
  const int64_t length = std::max({kSegment, up(call.window, kBlock), up(2 * call.globals, kBlock)});
  const auto band = band_units(call, length);
  Buffer<float> slots;  // (units, 2, globals, padded)
  std::vector<Range> slot_ranges(call.globals ? band.size() : 0, Range{0, 0});
  const int64_t slot = 2 * call.globals * padded;
  slots.reserve(slot * band.size());
  for (int64_t parity = 0; parity < 2; ++parity) {
    std::vector<int64_t> chosen;
    for (size_t i = 0; i < band.size(); ++i)
      if (band[i].segment % 2 == parity) chosen.push_back(i);
    run<Worker>(call, chosen.size(), [&](Worker& worker, int64_t i) {
      const Unit& unit = band[chosen[i]];
      const Rows rows = strip_rows(call, unit.batch, unit.head, unit.residue);
      const Keys keys = band_keys(call, rows), columns = column_keys(call, rows);
      const Range range = range_of(rows, keys, unit.begin, unit.end);
      const Range global_range = call.globals ? range_of(rows, columns, unit.begin, unit.end) : Range{0, 0};
      const Need need{true, false, true};
      if (!range.empty()) worker.pack(worker.band, rows, keys, range, need);
      if (!global_range.empty()) worker.pack(worker.columns, rows, columns, global_range, need);
      for (int64_t row = unit.begin; row < unit.end; row += kBlock) {
        const int64_t size = std::min<int64_t>(kBlock, unit.end - row);
        worker.take_block(rows, row, true, true);
        worker.begin_backward();
        if (!range.empty()) worker.differentiate(Sight(rows, keys, row, size), worker.band, true, true);
        if (!global_range.empty()) worker.differentiate(Sight(rows, columns, row, size), worker.columns, true, true);
        worker.end_backward();
      }
      if (!range.empty()) worker.put_key_gradients(worker.band, rows, keys, call.grad_key, call.grad_value);
      if (global_range.empty()) return;
      const Range packed = slot_ranges[chosen[i]] = worker.columns.range;
      const int64_t size = (packed.end - packed.begin) * padded;
      float* to = slots.get() + chosen[i] * slot;
      std::copy_n(worker.columns.grad_key.get(), size, to);
      std::copy_n(worker.columns.grad_value.get(), size, to + slot / 2);
    });
  }
  if (call.globals == 0) return;
  run<Worker>(call, call.batch * call.heads, [&](Worker&, int64_t i) {
    for (size_t u = 0; u < band.size(); ++u) {
      const Unit& unit = band[u];
      if (unit.batch * call.heads + unit.head != i) continue;
      for (int64_t j = slot_ranges[u].begin; j < slot_ranges[u].end; ++j) {
        const int64_t at = call.global_index[unit.batch * call.globals + j];
        const float* from = slots.get() + u * slot + (j - slot_ranges[u].begin) * padded;
        add_row(Row(call, call.grad_key, unit.batch, unit.head, at, kFloat32), from, (float)call.scale);
        add_row(Row(call, call.grad_value, unit.batch, unit.head, at, kFloat32), from + slot / 2,
                (float)(1 / call.keep));
      }
    }
  });
  // Global rows: the queries' gradients block by block, then the keys' chunk by chunk.
  const auto blocks = runs(call, call.globals, kBlock);
  run<Worker>(call, blocks.size(), [&](Worker& worker, int64_t i) {
    const Unit& unit = blocks[i];
    const Rows rows = global_rows(call, unit.batch, unit.head);
    const Keys keys = sequence_keys(call, rows);
    if (unit.begin >= rows.places.count) return;
    const Sight sight(rows, keys, unit.begin, std::min(unit.end, rows.places.count) - unit.begin);
    worker.take_block(rows, unit.begin, true, false);
    worker.begin_backward();
    for (int64_t from = down(sight.low, kPanel); from < sight.high; from += kChunk) {
      worker.pack(worker.band, rows, keys, {from, std::min(from + kChunk, sight.high)}, {true, false, false});
      worker.differentiate(sight, worker.band, true, false);
    }
    worker.end_backward();
  });
  const auto chunks = runs(call, call.length, kChunk);
  run<Worker>(call, chunks.size(), [&](Worker& worker, int64_t i) {
    const Unit& unit = chunks[i];
    const Rows rows = global_rows(call, unit.batch, unit.head);
    const Keys keys = sequence_keys(call, rows);
    worker.pack(worker.band, rows, keys, {unit.begin, unit.end}, {false, false, true});
    for (int64_t row = 0; row < rows.places.count; row += kBlock) {
      const Sight sight(rows, keys, row, std::min<int64_t>(kBlock, rows.places.count - row));
      if (sight.high <= unit.begin || sight.low >= unit.end) continue;
      worker.take_block(rows, row, true, true);
      worker.begin_backward();
      worker.differentiate(sight, worker.band, false, true);
    }
    worker.put_key_gradients(worker.band, rows, keys, call.grad_key_global, call.grad_value_global);
  });
}

template <class T>
struct Type {
  using type = T;
};

// Calls pass with the worker for the dtype and the width of a head; 0, or 1 where memory ran out.
template <class Pass>
int with_worker(const Call& call, Pass pass) {
  const bool usual = up(call.width, 16) == 64;
  try {
#if defined(__AVX512BF16__)
    if (call.dtype == kBFloat16) {
      usual ? pass(Type<Worker<BFloat16Pair, 64>>()) : pass(Type<Worker<BFloat16Pair, 0>>());
      return 0;
    }
#endif
    usual ? pass(Type<Worker<Float32, 64>>()) : pass(Type<Worker<Float32, 0>>());
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

extern "C" int longspan_forward(const Call* call) {
  return with_worker(*call, [&](auto worker) { forward<typename decltype(worker)::type>(*call); });
}

extern "C" int longspan_backward(const Call* call) {
  return with_worker(*call, [&](auto worker) { backward<typename decltype(worker)::type>(*call); });
}

// The most bytes that scratch has held since the last call of this.
extern "C" int64_t longspan_scratch_bytes() { return scratch_peak.exchange(scratch_now); }
