// Lists of rows and keys, and what a block of rows sees of a list.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "call.h"
#include "vectors.h"

namespace longspan {

constexpr int kGroup = 16;              // queries whose visible keys are bounded together
constexpr int kBlock = 64;              // queries at a time
constexpr int kGroups = kBlock / kGroup;
constexpr int kPanel = 6;               // keys at a time
constexpr int kTile = 96;               // keys between two steps of the softmax
constexpr int kPanels = kTile / kPanel;
constexpr int kVectors = kBlock / kLanes;
constexpr int kGroupVectors = kGroup / kLanes;
constexpr int64_t kSegment = 512;       // rows that share packed keys, at least
constexpr int64_t kChunk = kTile * 8;   // packed keys of a pass over keys

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

}  // namespace longspan
