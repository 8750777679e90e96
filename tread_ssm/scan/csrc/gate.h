// The gate behind a scan, and the RMSNorm behind the gate: out = weight * RMSNorm(y * SiLU(z)),
// forward and backward. See gated/reference.py. Without a weight: the gate alone.
#pragma once
#include <cmath>

#include "vec.h"

constexpr float GATE_EPS = 1e-5f;

// Tensors lie densely but for y, z and grad_out, whose rows are `*_stride` elements apart.
struct GateArgs {
  const void *y, *z, *grad_out;  // (rows, groups * channels), float or bf16
  const float* weight;           // (groups, channels) or null
  void *out, *gy, *gz;
  float* gweight;
  GompParallel parallel;
  int64_t y_stride, z_stride, grad_stride;
  int64_t rows, groups, channels, threads;
};

template <class T>
class Gate {
  const GateArgs& a;
  const Threads threads{a.parallel, (int)a.threads};
  const int64_t C = a.channels, E = a.groups * C, EP = ceil_div(E, 16) * 16 + 16;

  static ALWAYS_INLINE int lanes(int64_t left) { return (int)std::min<int64_t>(W, left); }
  static ALWAYS_INLINE float sum(vf x) {
    float total = 0.f;
    for (int i = 0; i < W; ++i) total += x[i];
    return total;
  }

  // y * SiLU(z) of a row's group to `to`; returns 1 / RMS of it.
  ALWAYS_INLINE float gated(const T* y, const T* z, float* to) const {
    vf squares = {};
    for (int64_t c = 0; c < C; c += W) {
      const vf gate = load(z + c, lanes(C - c)), x = load(y + c, lanes(C - c)) * gate * sigmoid(gate);
      store(to + c, x, lanes(C - c));
      squares += x * x;
    }
    return 1.f / std::sqrt(sum(squares) / C + GATE_EPS);
  }

  void forward_row(int64_t row, float* x) const {
    for (int64_t e = 0; e < E; e += C) {
      const float scale = gated((const T*)a.y + row * a.y_stride + e,
                                (const T*)a.z + row * a.z_stride + e, x);
      T* out = (T*)a.out + row * E + e;
      for (int64_t c = 0; c < C; c += W) {
        vf value = load(x + c, lanes(C - c));
        if (a.weight) value *= scale * load(a.weight + e + c, lanes(C - c));
        store(out + c, value, lanes(C - c));
      }
    }
  }

  // gweight: sums over the rows of a part. x: room for a row.
  void backward_row(int64_t row, float* x, float* gweight) const {
    for (int64_t e = 0; e < E; e += C) {
      const T *y = (const T*)a.y + row * a.y_stride + e, *z = (const T*)a.z + row * a.z_stride + e;
      const T* grad = (const T*)a.grad_out + row * a.grad_stride + e;
      T *gy = (T*)a.gy + row * E + e, *gz = (T*)a.gz + row * E + e;
      float scale = 1.f, mean = 0.f;
      if (a.weight) {
        scale = gated(y, z, x);
        vf products = {};
        for (int64_t c = 0; c < C; c += W) {
          const vf g = load(grad + c, lanes(C - c)), normed = scale * load(x + c, lanes(C - c));
          store(x + c, normed, lanes(C - c));
          products += g * load(a.weight + e + c, lanes(C - c)) * normed;
          float* sums = gweight + e + c;
          store(sums, load(sums, lanes(C - c)) + g * normed, lanes(C - c));
        }
        mean = sum(products) / C;
      }
      for (int64_t c = 0; c < C; c += W) {
        const int n = lanes(C - c);
        vf g = load(grad + c, n);
        if (a.weight) g = scale * (g * load(a.weight + e + c, n) - mean * load(x + c, n));
        const vf gate = load(z + c, n), s = sigmoid(gate);
        store(gy + c, g * gate * s, n);
        store(gz + c, g * load(y + c, n) * s * (1.f + gate * (1.f - s)), n);
      }
    }
  }

  // body(part, first row, last row) for ranges of rows, a few for each thread.
  template <class Body>
  void for_rows(const Body& body) const {
    for_parts(threads, parts, [&](int64_t part) {
      body(part, a.rows * part / parts, a.rows * (part + 1) / parts);
    });
  }

 public:
  const int64_t parts = std::min(a.rows, 4 * a.threads);
  explicit Gate(const GateArgs& args) : a(args) {}

  void forward() const {
    for_rows([&](int64_t, int64_t from, int64_t to) {
      Buffer x(EP);
      for (int64_t row = from; row < to; ++row) forward_row(row, x.data());
    });
  }

  void backward() const {
    Buffer sums(parts * EP);
    std::memset(sums.data(), 0, 4 * parts * EP);
    for_rows([&](int64_t part, int64_t from, int64_t to) {
      Buffer x(EP);
      for (int64_t row = from; row < to; ++row)
        backward_row(row, x.data(), sums.data() + part * EP);
    });
    for (int64_t e = 0; a.weight && e < E; ++e) {
      a.gweight[e] = 0.f;
      for (int64_t part = 0; part < parts; ++part) a.gweight[e] += sums.data()[part * EP + e];
    }
  }
};
