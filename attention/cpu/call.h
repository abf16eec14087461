// What the caller passes; __init__.py mirrors these structures. Strides are in elements.
#pragma once

#include <cstdint>

namespace longspan {

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

}  // namespace longspan
