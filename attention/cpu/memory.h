// Memory of one worker, counted.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace longspan {

inline std::atomic<int64_t> scratch_now{0}, scratch_peak{0};

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
#if defined(LONGSPAN_POISON)  // by a test: NaN, so that what is read before it is written shows
    std::memset(data_, 0xff, count_ * sizeof(T));
#endif
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

}  // namespace longspan
