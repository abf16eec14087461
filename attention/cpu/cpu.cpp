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
// even ones, then the odd ones. Gradients of global keys get a slot a segment, summed in order. No atomics: the same
// bits every run.
//
// Compiled for one instruction set by __init__.py, without torch's headers: of torch it uses two C functions.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "lists.h"
#include "memory.h"
#include "rows.h"
#include "worker.h"

// torch's thread pool, from its stable C interface (torch/csrc/stable/c/shim.h).
extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                                      void* context);
extern "C" int32_t torch_get_num_threads(uint32_t* threads);

namespace longspan {
namespace {

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
  // Where heads lie side by side in memory, (batch, n, heads, width), all heads of a segment one after another.
  if (call.key.head < call.key.row)
    std::stable_sort(units.begin(), units.end(), [](const Unit& one, const Unit& other) {
      return std::pair(one.batch, one.segment) < std::pair(other.batch, other.segment);
    });
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

inline int64_t threads() {
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return count;
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
  torch_parallel_for(0, std::min(threads(), units), 1, work, &context);
  if (context.failed) throw std::bad_alloc();
}

template <class Worker>
void forward(const Call& call) {
  // Enough units for every thread; how rows are cut changes no bit of the result.
  const int64_t share = call.batch * call.heads * call.length / (4 * threads());
  const auto band = band_units(call, up(std::clamp<int64_t>(share, kBlock, kSegment), kBlock));
  const auto global = runs(call, call.globals, kBlock);
  const Need need{false, true, false};
  run<Worker>(call, band.size(), [&](Worker& worker, int64_t i) {
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

// The gradients of global keys, as each unit of rows finds them: a slot a unit, added up in their order. There are
// fewer slots than units where they would take more room than the keys; then units go in batches.
class ColumnSlots {
 public:
  const Call& call;
  const int64_t width, size, count;  // of a key, of a slot, of slots

  ColumnSlots(const Call& c, int64_t units)
      : call(c),
        width(up(c.width, 16)),
        size(2 * c.globals * width),
        count(c.globals ? std::clamp(c.batch * c.heads * c.length / (2 * c.globals), threads(), std::max(units, threads()))
                        : std::max<int64_t>(units, 1)) {
    if (c.globals) ranges.resize(count);
    data.reserve(size * std::min(count, units));
  }

  template <class Operand>
  void put(int64_t slot, const PackedKeys<Operand>* columns) {
    ranges[slot] = columns ? columns->range : Range{0, 0};
    if (!columns) return;
    const int64_t numbers = (columns->range.end - columns->range.begin) * width;
    std::copy_n(columns->grad_key.get(), numbers, data.get() + slot * size);
    std::copy_n(columns->grad_value.get(), numbers, data.get() + slot * size + size / 2);
  }

  void add_to_gradients(int64_t slot, const Unit& unit) const {
    const float* from = data.get() + slot * size;
    for (int64_t i = ranges[slot].begin; i < ranges[slot].end; ++i, from += width) {
      const int64_t at = call.global_index[unit.batch * call.globals + i];
      add_row(Row(call, call.grad_key, unit.batch, unit.head, at, kFloat32), from, (float)call.scale);
      add_row(Row(call, call.grad_value, unit.batch, unit.head, at, kFloat32), from + size / 2, (float)(1 / call.keep));
    }
  }

 private:
  std::vector<Range> ranges;
  Buffer<float> data;  // (count, 2, globals, width)
};

// The gradients that the rows of some units give, and where `fused` those they give to the band's keys.
template <class Worker>
void units_backward(const Call& call, const std::vector<Unit>& units, bool fused, ColumnSlots& slots) {
  for (int64_t from = 0; from < (int64_t)units.size(); from += slots.count) {
    const int64_t batch = std::min<int64_t>(slots.count, units.size() - from);
    run<Worker>(call, batch, [&](Worker& worker, int64_t slot) {
      const Unit& unit = units[from + slot];
      const Rows rows = strip_rows(call, unit.batch, unit.head, unit.residue);
      const Keys keys = band_keys(call, rows), columns = column_keys(call, rows);
      const Range range = range_of(rows, keys, unit.begin, unit.end);
      const Range global_range = call.globals ? range_of(rows, columns, unit.begin, unit.end) : Range{0, 0};
      if (!range.empty()) worker.pack(worker.band, rows, keys, range, {true, false, fused});
      if (!global_range.empty()) worker.pack(worker.columns, rows, columns, global_range, {true, false, true});
      for (int64_t row = unit.begin; row < unit.end; row += kBlock) {
        const int64_t size = std::min<int64_t>(kBlock, unit.end - row);
        worker.take_block(rows, row, true, true);
        worker.begin_backward();
        if (!range.empty()) worker.differentiate(Sight(rows, keys, row, size), worker.band, true, fused);
        if (!global_range.empty()) worker.differentiate(Sight(rows, columns, row, size), worker.columns, true, true);
        worker.end_backward();
      }
      if (!range.empty() && fused) worker.put_key_gradients(worker.band, rows, keys, call.grad_key, call.grad_value);
      if (call.globals) slots.put(slot, global_range.empty() ? nullptr : &worker.columns);
    });
    if (call.globals == 0) continue;
    run<Worker>(call, call.batch * call.heads, [&](Worker&, int64_t i) {
      for (int64_t slot = 0; slot < batch; ++slot) {
        const Unit& unit = units[from + slot];
        if (unit.batch * call.heads + unit.head == i) slots.add_to_gradients(slot, unit);
      }
    });
  }
}

// The gradients of a chunk of keys, which begins at a whole panel, from those of the rows [first, last) that see it.
template <class Worker>
void chunk_backward(Worker& worker, const Rows& rows, const Keys& keys, Range chunk, int64_t first, int64_t last,
                    const Tensor& grad_key, const Tensor& grad_value) {
  worker.pack(worker.band, rows, keys, chunk, {false, false, true});
  for (int64_t row = first; row < last; row += kBlock) {
    const Sight sight(rows, keys, row, std::min<int64_t>(kBlock, rows.places.count - row));
    if (sight.high <= chunk.begin || sight.low >= chunk.end) continue;
    worker.take_block(rows, row, true, true);
    worker.begin_backward();
    worker.differentiate(sight, worker.band, false, true);
  }
  worker.put_key_gradients(worker.band, rows, keys, grad_key, grad_value);
}

// The gradients of the band's keys.
template <class Worker>
void keys_backward(const Call& call) {
  const auto chunks = band_units(call, kChunk);
  run<Worker>(call, chunks.size(), [&](Worker& worker, int64_t i) {
    const Unit& unit = chunks[i];
    const Rows rows = strip_rows(call, unit.batch, unit.head, unit.residue);
    const int64_t first = down(std::max<int64_t>(unit.begin - call.window, 0), kBlock);
    const int64_t last = std::min(unit.end + call.window, rows.places.count);
    chunk_backward(worker, rows, band_keys(call, rows), {unit.begin, unit.end}, first, last, call.grad_key,
                   call.grad_value);
  });
}

template <class Worker>
void backward(const Call& call) {
  // Fused, a unit adds to the gradients of all keys that its rows see. It is so long that two units with one between
  // them see no key in common: the even ones may run at once, then the odd ones. Where that leaves threads without
  // work, a pass over rows for the queries' gradients is followed by one over keys: 7 products instead of 5.
  const int64_t least = std::max(kSegment, up(2 * call.globals, kBlock));
  const auto band = band_units(call, std::max(least, up(call.window, kBlock)));
  std::vector<Unit> even, odd;
  for (const Unit& unit : band) (unit.segment % 2 == 0 ? even : odd).push_back(unit);
  const bool fused = 2 * (int64_t)even.size() >= threads();
  if (fused) {
    ColumnSlots slots(call, even.size());
    units_backward<Worker>(call, even, true, slots);
    units_backward<Worker>(call, odd, true, slots);
  } else {
    const auto shorter = band_units(call, least);
    ColumnSlots slots(call, shorter.size());
    units_backward<Worker>(call, shorter, false, slots);
    keys_backward<Worker>(call);
  }
  if (call.globals == 0) return;
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
    chunk_backward(worker, rows, sequence_keys(call, rows), {unit.begin, unit.end}, 0, rows.places.count,
                   call.grad_key_global, call.grad_value_global);
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
}  // namespace longspan

extern "C" int longspan_forward(const longspan::Call* call) {
  return longspan::with_worker(*call, [&](auto worker) { longspan::forward<typename decltype(worker)::type>(*call); });
}

extern "C" int longspan_backward(const longspan::Call* call) {
  return longspan::with_worker(*call, [&](auto worker) { longspan::backward<typename decltype(worker)::type>(*call); });
}

// So that the caller can see that its structure is this one.
extern "C" int64_t longspan_call_bytes() { return sizeof(longspan::Call); }

// The most bytes that scratch has held since the last call of this.
extern "C" int64_t longspan_scratch_bytes() { return longspan::scratch_peak.exchange(longspan::scratch_now); }
