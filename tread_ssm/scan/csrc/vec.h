// Vectors of W channel lanes, dtypes, elementary functions and threads.
//
// GCC's vector extensions (also in clang) rather than intrinsics: one source for AVX-512, AVX2,
// SSE2 and NEON. Compile without -ffast-math: NaN and infinity must come through, and linking with
// it would set flush-to-zero for the whole process.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define INLINE static ALWAYS_INLINE

#if defined(__AVX512F__)
constexpr int W = 16;
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX__)
constexpr int W = 8;
#define ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
constexpr int W = 4;
#define ZIP_LOW 0, 4, 1, 5
#define ZIP_HIGH 2, 6, 3, 7
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

constexpr float LOG2E = 1.442695040888963f, LN2 = 0.6931471805599453f;
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

INLINE vf splat(float x) { return x - (vf){}; }

// ---- dtypes ------------------------------------------------------------------------------------

struct bf16 {
  uint16_t bits;
};

INLINE float widen(float x) { return x; }
INLINE float widen(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
INLINE void narrow(float x, float* to) { *to = x; }
INLINE void narrow(float x, bf16* to) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE vf load_full(const float* p) {
  vf x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
INLINE vf load_full(const bf16* p) {
  vh x;
  std::memcpy(&x, p, sizeof(x));
  return (vf)(__builtin_convertvector(x, vu) << 16);
}
INLINE void store_full(float* p, vf x) { std::memcpy(p, &x, sizeof(x)); }
INLINE void store_full(bf16* p, vf x) {
  vu bits = (vu)x;
  vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = x != x ? (rounded & 0) + 0x7fc0 : rounded;
  vh y = __builtin_convertvector(rounded, vh);
  std::memcpy(p, &y, sizeof(y));
}

// The first `lanes` of W; the others read 0 and are not written.
template <class T>
INLINE vf load(const T* p, int lanes) {
  if (__builtin_expect(lanes >= W, 1)) return load_full(p);
  float x[W] = {};
  for (int i = 0; i < lanes; ++i) x[i] = widen(p[i]);
  return load_full(x);
}
template <class T>
INLINE void store(T* p, vf x, int lanes) {
  if (__builtin_expect(lanes >= W, 1)) return store_full(p, x);
  for (int i = 0; i < lanes; ++i) narrow(x[i], p + i);
}

// The second argument where either is NaN. GCC compiles the comparison to two instructions.
INLINE vf maximum(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
INLINE vf minimum(vf a, vf b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// ---- elementary functions ----------------------------------------------------------------------

// 2^r for r in [-1/2, 1/2] to 1e-8 before rounding, exactly 1 at 0.
INLINE vf exp2_fraction(vf r) {
  vf p = 1.54035082e-4f * r + 1.33907355e-3f;
  p = p * r + 9.61823751e-3f;
  p = p * r + 5.55035743e-2f;
  p = p * r + 2.40226498e-1f;
  p = p * r + 6.93147188e-1f;
  return p * r + 1.f;
}

// 2^x; 0 below -127, infinity from 128 on, NaN for NaN.
INLINE vf exp2_(vf x) {
#if defined(__AVX512F__)
  vf n = _mm512_roundscale_ps(x, 8);
  return _mm512_scalef_ps(exp2_fraction(x - n), n);
#else
  x = minimum(splat(128.f), maximum(splat(-127.f), x));
  const float magic = 12582912.f + 127.f;  // adding it leaves round(x) + 127 in the low bits
  vf t = x + magic;
  return exp2_fraction(x - (t - magic)) * (vf)((vi)t << 23);
#endif
}

INLINE vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }

INLINE vf sigmoid(vf x) {
  vf e = exp2_(absolute(x) * -LOG2E);
  return (x < (vf){} ? e : splat(1.f)) / (e + 1.f);
}

// softplus(x) = max(x, 0) + log(1 + e), e = exp(-|x|), with full relative accuracy for small e:
// log(1 + e) = 2 atanh(e / (2 + e)). And its slope, by the same division.
INLINE vf softplus(vf x, vf* slope) {
  const vf zero = {};
  vf e = exp2_(absolute(x) * -LOG2E);
  vf inverse = 1.f / ((e + 1.f) * (e + 2.f));
  *slope = (x < zero ? e : splat(1.f)) * (e + 2.f) * inverse;
  vf s = e * (e + 1.f) * inverse, q = s * s;
  vf p = 0.14089163f * q + 0.139803024f;
  p = p * q + 0.200124551f;
  p = p * q + 0.333331573f;
  p = p * q + 1.f;
  return 2.f * s * p + (x < zero ? zero : x);
}

// out[i] = sum over the lanes of v[i], for W vectors
INLINE void sum_lanes(const vf* v, float* out) {
  vf sums[W];
  for (int i = 0; i < W; ++i) {
    int reversed = 0;  // of the bits of i: zipping pairs leaves the sums in that order
    for (int bit = 1, j = i; bit < W; bit *= 2, j /= 2) reversed = 2 * reversed + (j & 1);
    sums[i] = v[reversed];
  }
  for (int m = W / 2; m >= 1; m /= 2)
    for (int i = 0; i < m; ++i) {
      vf a = sums[2 * i], b = sums[2 * i + 1];
      sums[i] = SHUFFLE(a, b, ZIP_LOW) + SHUFFLE(a, b, ZIP_HIGH);
    }
  store_full(out, sums[0]);
}

// ---- memory and threads ------------------------------------------------------------------------

// Aligned, uninitialised floats.
class Buffer {
  std::unique_ptr<void, decltype(&std::free)> memory;

 public:
  explicit Buffer(int64_t n) : memory(std::malloc(4 * n + 64), std::free) {
    if (!memory) throw std::bad_alloc();
  }
  float* data() const { return (float*)(((uintptr_t)memory.get() + 63) & ~(uintptr_t)63); }
};

// Subnormals cost a hundred cycles each on some processors and carry nothing here: flush them
// while a kernel runs, and give the thread its own mode back afterwards.
struct FlushSubnormals {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();
  FlushSubnormals() { _mm_setcsr(before | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before); }
#endif
};

// libgomp's entry point, taken from the OpenMP runtime that torch has loaded: one pool of threads
// for torch and for us. Two pools would spin against each other on the same cores.
typedef void (*GompParallel)(void (*)(void*), void*, unsigned, unsigned);

struct Threads {
  GompParallel parallel;
  int count;
};

// body(0), ..., body(parts - 1), each once. What a part computes must not depend on the thread.
template <class Body>
void for_parts(const Threads& threads, int64_t parts, const Body& body) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto work = [&] {
    FlushSubnormals flush;
    try {
      for (int64_t i; (i = next.fetch_add(1)) < parts;) body(i);
    } catch (...) {  // an exception that left a worker thread would end the process
      failed = true;
    }
  };
  using Work = decltype(work);
  if (threads.count <= 1 || parts <= 1) {
    work();
  } else if (threads.parallel) {
    threads.parallel([](void* w) { (*static_cast<Work*>(w))(); }, &work, threads.count, 0);
  } else {
    std::vector<std::thread> others;
    for (int i = 1; i < threads.count; ++i) others.emplace_back(work);
    work();
    for (auto& t : others) t.join();
  }
  if (failed) throw std::bad_alloc();
}
