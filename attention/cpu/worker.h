// The work on blocks of queries and tiles of keys: packing, forward, backward.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "lists.h"
#include "memory.h"
#include "products.h"
#include "rows.h"

namespace longspan {

template <class Operand>
struct PackedKeys {
  using Word = typename Operand::Word;
  Range range;                              // of the list; begins at a multiple of kPanel
  int64_t first;                            // that was asked for: those in front of it only fill the panel
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
    packed.first = range.begin;
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

  // The gradients of the packed keys that were asked for, to where they belong. What fills the first panel may be
  // another thread's at this moment.
  void put_key_gradients(const PackedKeys<Operand>& packed, const Rows& list, const Keys& keys,
                         const Tensor& grad_key, const Tensor& grad_value) {
    for (int64_t i = packed.first - packed.range.begin; i < packed.range.end - packed.range.begin; ++i) {
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
  static constexpr float kNothing = -3e38f;  // the reference of a row that has seen nothing
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

}  // namespace longspan
