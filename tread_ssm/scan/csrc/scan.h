// Selective scan, forward and backward. See reference.py for the equations.
//
// W channels side by side in the lanes of a vector, a group of states in registers, time in chunks
// of CHUNK visits. The forward keeps the state before each chunk; the backward recomputes a chunk
// from it and walks back. Exponents are kept in units of log 2.
//
// A part is one sample and one range of channel blocks. The gradients of B and C are summed over
// the channels of a part in lane accumulators, then over parts in a fixed order.
#pragma once
#include "vec.h"

constexpr int CHUNK = 64, STATE_PAD = 8, CHANNEL_PAD = 16;
constexpr int GROUP = 8, BACK_GROUP = 4;  // states at a time, forward and backward; divide STATE_PAD

// Every pointer may be null where reference.py says None. Tensors are contiguous.
struct ScanArgs {
  const void *u, *delta, *B, *C, *z, *grad_y;  // (B, L, D) or (B, L, N), float or bf16
  const float *A, *D, *bias;                   // (D, N), (D), (D)
  const int64_t* order;                        // (K) or (B, K)
  const float* stretch;                        // 1 + gap, (K) or (B, K)
  float* states;                               // (B, chunks, padded N, padded D)
  void *y, *gu, *gdelta, *gz, *gB, *gC;        // as the inputs; unvisited rows are not written
  float *gA, *gD, *gbias;
  GompParallel parallel;
  int64_t order_stride, stretch_stride;  // 0 where shared by the samples
  int64_t batch, length, visits, dim, state, softplus, threads;
};

template <class T>
class Scan {
  const ScanArgs& a;
  const Threads threads{a.parallel, (int)a.threads};
  const int64_t K = a.visits, D = a.dim, N = a.state;
  const int64_t NP = ceil_div(N, STATE_PAD) * STATE_PAD;
  const int64_t DP = ceil_div(D, CHANNEL_PAD) * CHANNEL_PAD;
  const int64_t blocks = ceil_div(D, W), chunks = ceil_div(K, CHUNK);
  // enough parts to keep the threads busy, few enough to sum B and C over many channels
  const int64_t splits =
      std::max<int64_t>(1, std::min(blocks, ceil_div(4 * a.threads, a.batch)));
  Buffer exponents{NP * DP}, skip{DP}, bias{DP}, packed_B{a.batch * K * NP},
      packed_C{a.batch * K * NP};

  int64_t position(int64_t b, int64_t k) const {
    return a.order ? a.order[b * a.order_stride + k] : k;
  }
  float stretch(int64_t b, int64_t k) const {
    return a.stretch ? a.stretch[b * a.stretch_stride + k] : 1.f;
  }
  int64_t first_block(int64_t split) const { return blocks * split / splits; }

  // A in units of log 2, channels last and padded; B and C in visiting order, padded
  void pack() {
    for_parts(threads, a.batch + 1, [&](int64_t b) {
      if (b == a.batch) return pack_channels();
      float *to_B = packed_B.data() + b * K * NP, *to_C = packed_C.data() + b * K * NP;
      for (int64_t k = 0; k < K; ++k, to_B += NP, to_C += NP) {
        const int64_t from = (b * a.length + position(b, k)) * N;
        for (int64_t n = 0; n < NP; ++n) {
          to_B[n] = n < N ? widen(((const T*)a.B)[from + n]) : 0.f;
          to_C[n] = n < N ? widen(((const T*)a.C)[from + n]) : 0.f;
        }
      }
    });
  }
  void pack_channels() {
    for (int64_t d = 0; d < DP; ++d) {
      for (int64_t n = 0; n < NP; ++n)
        exponents.data()[n * DP + d] = n < N && d < D ? a.A[d * N + n] * LOG2E : 0.f;
      skip.data()[d] = a.D && d < D ? a.D[d] : 0.f;
      bias.data()[d] = a.bias && d < D ? a.bias[d] : 0.f;
    }
  }

  // One chunk of one block of channels: everything that does not depend on the state.
  struct Tile {
    int steps, lanes;
    int64_t row[CHUNK];  // offsets into (B, L, D)
    vf u[CHUNK], dt[CHUNK], slope[CHUNK], stretched[CHUNK], input[CHUNK], y[CHUNK];
  };

  template <bool SLOPE>
  ALWAYS_INLINE void load_tile(Tile& t, int64_t b, int64_t chunk, int64_t block) {
    const int64_t k0 = chunk * CHUNK, d0 = block * W;
    t.steps = (int)std::min<int64_t>(CHUNK, K - k0);
    t.lanes = (int)std::min<int64_t>(W, D - d0);
    const vf bias_ = load_full(bias.data() + d0);
    for (int i = 0; i < t.steps; ++i) {
      const int64_t row = (b * a.length + position(b, k0 + i)) * D + d0;
      vf x = load((const T*)a.delta + row, t.lanes) + bias_;
      vf slope = splat(1.f), dt = a.softplus ? softplus(x, &slope) : x;
      t.row[i] = row;
      t.u[i] = load((const T*)a.u + row, t.lanes);
      t.dt[i] = dt;
      if (SLOPE) t.slope[i] = slope;
      t.stretched[i] = dt * stretch(b, k0 + i);
      t.input[i] = dt * t.u[i];
      t.y[i] = (vf){};
    }
  }

  // Advance G states through the tile, adding C . h to y. KEEP: leave decays and states for the
  // way back; state[0] holds those before the chunk.
  template <int G, bool KEEP>
  ALWAYS_INLINE void advance(Tile& t, const float* A, const float* B, const float* C, vf* h,
                             vf* decay, vf* state) {
    vf exponent[G], s[G];
    for (int n = 0; n < G; ++n) exponent[n] = load_full(A + n * DP), s[n] = h[n];
    if (KEEP)
      for (int n = 0; n < G; ++n) state[n] = s[n];
    for (int i = 0; i < t.steps; ++i, B += NP, C += NP) {
      const vf stretched = t.stretched[i], input = t.input[i];
      vf y = t.y[i];
#pragma GCC unroll 16
      for (int n = 0; n < G; ++n) {
        vf e = exp2_(stretched * exponent[n]);
        s[n] = e * s[n] + input * B[n];
        y += s[n] * C[n];
        if (KEEP) decay[i * G + n] = e, state[(i + 1) * G + n] = s[n];
      }
      t.y[i] = y;
    }
    for (int n = 0; n < G; ++n) h[n] = s[n];
  }

  // Each block writes its state before the next chunk, and finds it there.
  void forward_part(int64_t b, int64_t split) {
    Tile t;
    for (int64_t c = 0; c < chunks; ++c)
      for (int64_t block = first_block(split); block < first_block(split + 1); ++block) {
        const int64_t d0 = block * W, at = (b * K + c * CHUNK) * NP;
        float* before = a.states + (b * chunks + c) * NP * DP + d0;
        load_tile<false>(t, b, c, block);
        if (c == 0)
          for (int64_t n = 0; n < NP; ++n) store_full(before + n * DP, (vf){});
        float* after = c + 1 < chunks ? before + NP * DP : nullptr;
        for (int64_t n0 = 0; n0 < NP; n0 += GROUP) {
          vf h[GROUP];
          for (int n = 0; n < GROUP; ++n) h[n] = load_full(before + (n0 + n) * DP);
          advance<GROUP, false>(t, exponents.data() + n0 * DP + d0, packed_B.data() + at + n0,
                                packed_C.data() + at + n0, h, nullptr, nullptr);
          for (int n = 0; n < GROUP && after; ++n) store_full(after + (n0 + n) * DP, h[n]);
        }
        const vf skip_ = load_full(skip.data() + d0);
        for (int i = 0; i < t.steps; ++i) {
          vf y = t.y[i] + skip_ * t.u[i];
          if (a.z) {
            vf z = load((const T*)a.z + t.row[i], t.lanes);
            y *= z * sigmoid(z);
          }
          store((T*)a.y + t.row[i], y, t.lanes);
        }
      }
  }

  // Sums over parts and where a part collects them; Buffers exist in the backward only.
  struct Sums {
    Buffer A, D, bias, B, C;  // (B, NP, DP), (B, DP), (B, DP), (splits, B, K, NP) twice
    Sums(const Scan& s)
        : A(s.a.batch * s.NP * s.DP), D(s.a.batch * s.DP), bias(s.a.batch * s.DP),
          B(s.splits * s.a.batch * s.K * s.NP), C(s.splits * s.a.batch * s.K * s.NP) {}
  };

  struct Gradients {
    vf gated[CHUNK];  // of the output before the gate
    vf gate[CHUNK];   // gradient of z is this times the output before the gate
    vf input[CHUNK], exponent[CHUNK];
  };

  // The way back through G states of a tile; `later` is the gradient carried from later visits.
  template <int G>
  ALWAYS_INLINE void retreat(const Tile& t, Gradients& g, const float* A, const float* B,
                             const float* C, const vf* decay, const vf* state, float* later,
                             float* sum_A, vf* sum_B, vf* sum_C) {
    vf exponent[G], carry[G], of_A[G];
    for (int n = 0; n < G; ++n) {
      exponent[n] = load_full(A + n * DP);
      carry[n] = load_full(later + n * W);
      of_A[n] = load_full(sum_A + n * DP);
    }
    for (int i = t.steps - 1; i >= 0; --i) {
      const vf gated = g.gated[i], input = t.input[i], stretched = t.stretched[i];
      vf of_input = g.input[i], of_exponent = g.exponent[i];
      const float *Bi = B + i * NP, *Ci = C + i * NP;
#pragma GCC unroll 16
      for (int n = 0; n < G; ++n) {
        vf of_state = carry[n] + gated * Ci[n];
        sum_C[i * G + n] += gated * state[(i + 1) * G + n];
        sum_B[i * G + n] += of_state * input;
        of_input += of_state * Bi[n];
        carry[n] = of_state * decay[i * G + n];
        vf q = carry[n] * state[i * G + n];
        of_exponent += q * exponent[n];
        of_A[n] += q * stretched;
      }
      g.input[i] = of_input;
      g.exponent[i] = of_exponent;
    }
    for (int n = 0; n < G; ++n) {
      store_full(later + n * W, carry[n]);
      store_full(sum_A + n * DP, of_A[n]);
    }
  }

  void load_gradients(const Tile& t, Gradients& g) {
    for (int i = 0; i < t.steps; ++i) {
      g.gated[i] = load((const T*)a.grad_y + t.row[i], t.lanes);
      if (a.z) {
        vf z = load((const T*)a.z + t.row[i], t.lanes), s = sigmoid(z);
        g.gate[i] = g.gated[i] * s * (1.f + z * (1.f - s));
        g.gated[i] *= z * s;
      }
      g.input[i] = g.exponent[i] = (vf){};
    }
  }

  void store_gradients(const Tile& t, const Gradients& g, int64_t b, int64_t chunk, int64_t d0,
                       Sums& sums) {
    const vf skip_ = load_full(skip.data() + d0);
    float *to_D = sums.D.data() + b * DP + d0, *to_bias = sums.bias.data() + b * DP + d0;
    vf sum_D = load_full(to_D), sum_bias = load_full(to_bias);
    for (int i = 0; i < t.steps; ++i) {
      vf of_dt = g.input[i] * t.u[i] + g.exponent[i] * LN2 * stretch(b, chunk * CHUNK + i);
      vf of_delta = of_dt * t.slope[i];
      store((T*)a.gu + t.row[i], g.input[i] * t.dt[i] + skip_ * g.gated[i], t.lanes);
      store((T*)a.gdelta + t.row[i], of_delta, t.lanes);
      sum_D += g.gated[i] * t.u[i];
      sum_bias += of_delta;
      if (a.z) store((T*)a.gz + t.row[i], g.gate[i] * (t.y[i] + skip_ * t.u[i]), t.lanes);
    }
    store_full(to_D, sum_D);
    store_full(to_bias, sum_bias);
  }

  void backward_part(int64_t b, int64_t split, Sums& sums) {
    constexpr int G = BACK_GROUP;
    const int64_t block0 = first_block(split), block1 = first_block(split + 1);
    Tile t;
    Gradients g;
    vf decay[CHUNK * G], state[(CHUNK + 1) * G];
    Buffer later((block1 - block0) * NP * W), lane_sums(2 * CHUNK * NP * W);
    std::memset(later.data(), 0, sizeof(vf) * (block1 - block0) * NP);
    for (int64_t d0 = block0 * W; d0 < block1 * W; d0 += W) {
      for (int64_t n = 0; n < NP; ++n)
        store_full(sums.A.data() + (b * NP + n) * DP + d0, (vf){});
      store_full(sums.D.data() + b * DP + d0, (vf){});
      store_full(sums.bias.data() + b * DP + d0, (vf){});
    }
    vf *sum_B = (vf*)lane_sums.data(), *sum_C = sum_B + CHUNK * NP;
    for (int64_t c = chunks - 1; c >= 0; --c) {
      std::memset(sum_B, 0, sizeof(vf) * 2 * CHUNK * NP);
      const int64_t at = (b * K + c * CHUNK) * NP;
      for (int64_t block = block0; block < block1; ++block) {
        const int64_t d0 = block * W;
        const float* before = a.states + (b * chunks + c) * NP * DP + d0;
        load_tile<true>(t, b, c, block);
        load_gradients(t, g);
        for (int64_t n0 = 0; n0 < NP; n0 += G) {
          const float *A = exponents.data() + n0 * DP + d0, *B = packed_B.data() + at + n0,
                      *C = packed_C.data() + at + n0;
          vf h[G];
          for (int n = 0; n < G; ++n) h[n] = load_full(before + (n0 + n) * DP);
          advance<G, true>(t, A, B, C, h, decay, state);
          retreat<G>(t, g, A, B, C, decay, state,
                     later.data() + ((block - block0) * NP + n0) * W,
                     sums.A.data() + (b * NP + n0) * DP + d0, sum_B + n0 * CHUNK,
                     sum_C + n0 * CHUNK);
        }
        store_gradients(t, g, b, c, d0, sums);
      }
      const int64_t to = (split * a.batch * K) * NP + at;
      reduce_lanes(sum_B, sums.B.data() + to, c);
      reduce_lanes(sum_C, sums.C.data() + to, c);
    }
  }

  // Lane accumulators (NP / BACK_GROUP, CHUNK, BACK_GROUP) to sums (visits of the chunk, NP).
  void reduce_lanes(const vf* from, float* to, int64_t chunk) {
    const int64_t steps = std::min<int64_t>(CHUNK, K - chunk * CHUNK);
    for (int64_t n0 = 0; n0 < NP; n0 += BACK_GROUP, from += CHUNK * BACK_GROUP)
      for (int64_t i = 0; i < steps; i += W / BACK_GROUP) {
        float sum[W];
        sum_lanes(from + i * BACK_GROUP, sum);
        for (int64_t j = 0; j < W / BACK_GROUP && i + j < steps; ++j)
          std::memcpy(to + (i + j) * NP + n0, sum + j * BACK_GROUP, 4 * BACK_GROUP);
      }
  }

  // Over splits for B and C, over samples for A, D and bias.
  void add_up(Sums& sums) {
    for_parts(threads, a.batch + NP, [&](int64_t part) {
      if (part < a.batch) {
        add_up_inputs(part, sums.B.data(), (T*)a.gB);
        add_up_inputs(part, sums.C.data(), (T*)a.gC);
      } else if (part - a.batch < N) {
        const int64_t n = part - a.batch;
        add_up_channels(sums.A.data() + n * DP, NP * DP, a.gA + n, N);
      }
    });
    if (a.D) add_up_channels(sums.D.data(), DP, a.gD, 1);
    if (a.bias) add_up_channels(sums.bias.data(), DP, a.gbias, 1);
  }
  void add_up_inputs(int64_t b, const float* from, T* to) {
    for (int64_t k = 0; k < K; ++k)
      for (int64_t n = 0; n < N; ++n) {
        float sum = 0.f;
        for (int64_t s = 0; s < splits; ++s) sum += from[((s * a.batch + b) * K + k) * NP + n];
        narrow(sum, to + (b * a.length + position(b, k)) * N + n);
      }
  }
  void add_up_channels(const float* from, int64_t sample_stride, float* to, int64_t to_stride) {
    for (int64_t d0 = 0; d0 < D; d0 += W) {
      vf sum = {};
      for (int64_t b = 0; b < a.batch; ++b) sum += load_full(from + b * sample_stride + d0);
      for (int i = 0; i < W && d0 + i < D; ++i) to[(d0 + i) * to_stride] = sum[i];
    }
  }

 public:
  explicit Scan(const ScanArgs& args) : a(args) {}

  void forward() {
    pack();
    for_parts(threads, a.batch * splits,
              [&](int64_t part) { forward_part(part / splits, part % splits); });
  }

  void backward() {
    pack();
    Sums sums(*this);
    for_parts(threads, a.batch * splits,
              [&](int64_t part) { backward_part(part / splits, part % splits, sums); });
    add_up(sums);
  }
};
