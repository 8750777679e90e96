// Causal depthwise convolution along the visiting order, then SiLU: forward and backward.
//
// Row by row along the visits, all channels of a part at once. A visit k reads the visit `back`
// steps before it with the tap of their distance: `back` itself, or with gaps the number of places
// between them, which may exceed the width: then it reads nothing.
#pragma once
#include "vec.h"

constexpr int MAX_WIDTH = 4;

struct ConvArgs {
  const void *x, *grad_y;             // (B, L, D), float or bf16
  const float *weight, *bias;         // (D, width), (D) or null
  const int64_t *order, *gap;         // (K) or (B, K), or null
  void *y, *gx;                       // as x; unvisited rows are not written
  float *gweight, *gbias;
  GompParallel parallel;
  int64_t x_stride;                  // elements from one position of x to the next; else dense
  int64_t order_stride, gap_stride;  // 0 where shared by the samples
  int64_t batch, length, visits, dim, width, activation, threads;
};

template <class T>
class Conv {
  const ConvArgs& a;
  const Threads threads{a.parallel, (int)a.threads};
  const int64_t K = a.visits, D = a.dim, DP = ceil_div(D, 16) * 16;
  const int width = (int)a.width;
  Buffer weight{MAX_WIDTH * DP}, bias{DP};  // (distance, DP): distance 0 is the token itself

  int64_t position(int64_t b, int64_t k) const {
    return b * a.length + (a.order ? a.order[b * a.order_stride + k] : k);
  }
  int64_t row(int64_t b, int64_t k) const { return position(b, k) * D; }

  // Distance of visit k to the one `back` steps before it; `width` or more: no tap reaches it.
  int64_t distance(int64_t b, int64_t k, int back) const {
    if (k < back) return width;
    if (!a.gap) return back;
    int64_t places = 0;
    for (int i = 0; i < back && places < width; ++i) {
      const int64_t gap = a.gap[b * a.gap_stride + k - i];
      if (gap < 0 || gap >= width) return width;  // also keeps huge values from overflowing
      places += gap + 1;
    }
    return places;
  }

  void pack() {
    for (int64_t d = 0; d < DP; ++d) {
      for (int j = 0; j < width; ++j)
        weight.data()[j * DP + d] = d < D ? a.weight[d * width + width - 1 - j] : 0.f;
      bias.data()[d] = a.bias && d < D ? a.bias[d] : 0.f;
    }
  }

  // What visit k reads: rows of x and of the weights.
  struct Reads {
    int count = 0;
    const T* x[MAX_WIDTH];
    const float* w[MAX_WIDTH];
    int64_t distance[MAX_WIDTH];
  };
  Reads reads(int64_t b, int64_t k) const {
    Reads r;
    for (int back = 0; back < width; ++back) {
      const int64_t j = distance(b, k, back);
      if (j >= width) continue;
      r.x[r.count] = (const T*)a.x + position(b, k - back) * a.x_stride;
      r.w[r.count] = weight.data() + j * DP;
      r.distance[r.count++] = j;
    }
    return r;
  }
  ALWAYS_INLINE vf convolve(const Reads& r, const float* bias, int64_t d, int lanes) const {
    vf sum = load_full(bias + d);
    for (int i = 0; i < r.count; ++i) sum += load(r.x[i] + d, lanes) * load_full(r.w[i] + d);
    return sum;
  }

  void forward_part(int64_t b, int64_t k0, int64_t k1) {
    for (int64_t k = k0; k < k1; ++k) {
      const Reads r = reads(b, k);
      T* to = (T*)a.y + row(b, k);
      for (int64_t d = 0; d < D; d += W) {
        const int lanes = (int)std::min<int64_t>(W, D - d);
        vf y = convolve(r, bias.data(), d, lanes);
        if (a.activation) y *= sigmoid(y);
        store(to + d, y, lanes);
      }
    }
  }

  // Channels d0..d1 of one sample. `ring` holds the gradients before the activation of the last
  // `width` visits, which are all that may have read the visit to be finished.
  void backward_part(int64_t b, int64_t d0, int64_t d1, float* sums) {
    Buffer ring(MAX_WIDTH * DP);
    float* sum_bias = sums + MAX_WIDTH * DP;
    for (int64_t d = d0; d < d1; d += W) {
      for (int j = 0; j < MAX_WIDTH; ++j) store_full(sums + j * DP + d, (vf){});
      store_full(sum_bias + d, (vf){});
    }
    for (int64_t k = 0; k < K + width - 1; ++k) {
      if (k < K) slope_row(b, k, d0, d1, ring.data() + (k % width) * DP, sums, sum_bias);
      if (k >= width - 1) finish_row(b, k - (width - 1), d0, d1, ring.data());
    }
  }
  void slope_row(int64_t b, int64_t k, int64_t d0, int64_t d1, float* to, float* sums,
                 float* sum_bias) {
    const Reads r = reads(b, k);
    const T* grad = (const T*)a.grad_y + row(b, k);
    for (int64_t d = d0; d < d1; d += W) {
      const int lanes = (int)std::min<int64_t>(W, D - d);
      vf g = load(grad + d, lanes);
      if (a.activation) {
        vf y = convolve(r, bias.data(), d, lanes), s = sigmoid(y);
        g *= s * (1.f + y * (1.f - s));
      }
      store_full(to + d, g);
      store_full(sum_bias + d, load_full(sum_bias + d) + g);
      for (int i = 0; i < r.count; ++i) {
        float* sum = sums + r.distance[i] * DP + d;
        store_full(sum, load_full(sum) + g * load(r.x[i] + d, lanes));
      }
    }
  }
  void finish_row(int64_t b, int64_t k, int64_t d0, int64_t d1, const float* ring) {
    int count = 0;
    const float *g[MAX_WIDTH], *w[MAX_WIDTH];
    for (int ahead = 0; ahead < width && k + ahead < K; ++ahead) {
      const int64_t j = distance(b, k + ahead, ahead);
      if (j >= width) continue;
      g[count] = ring + ((k + ahead) % width) * DP;
      w[count++] = weight.data() + j * DP;
    }
    T* to = (T*)a.gx + row(b, k);
    for (int64_t d = d0; d < d1; d += W) {
      vf sum = {};
      for (int i = 0; i < count; ++i) sum += load_full(g[i] + d) * load_full(w[i] + d);
      store(to + d, sum, (int)std::min<int64_t>(W, D - d));
    }
  }

 public:
  explicit Conv(const ConvArgs& args) : a(args) {}

  void forward() {
    pack();
    const int64_t rows = 32, ranges = ceil_div(K, rows);
    for_parts(threads, a.batch * ranges, [&](int64_t part) {
      const int64_t k0 = part % ranges * rows;
      forward_part(part / ranges, k0, std::min(K, k0 + rows));
    });
  }

  void backward() {
    pack();
    const int64_t stride = (MAX_WIDTH + 1) * DP;
    const int64_t most = ceil_div(D, 4 * W);  // at least four vectors to a part
    const int64_t splits =
        std::max<int64_t>(1, std::min(most, ceil_div(4 * a.threads, a.batch)));
    Buffer sums(a.batch * stride);
    for_parts(threads, a.batch * splits, [&](int64_t part) {
      const int64_t b = part / splits, s = part % splits, blocks = ceil_div(D, W);
      backward_part(b, blocks * s / splits * W, std::min(DP, blocks * (s + 1) / splits * W),
                    sums.data() + b * stride);
    });
    for (int64_t d = 0; d < D; d += W)
      for (int j = 0; j <= MAX_WIDTH; ++j) {
        vf sum = {};
        for (int64_t b = 0; b < a.batch; ++b)
          sum += load_full(sums.data() + b * stride + j * DP + d);
        for (int i = 0; i < W && d + i < D; ++i) {
          if (j < width) a.gweight[(d + i) * width + width - 1 - j] = sum[i];
          if (j == MAX_WIDTH && a.bias) a.gbias[d + i] = sum[i];
        }
      }
  }
};
