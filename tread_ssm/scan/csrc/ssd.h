// The decayed product of Mamba-2 and Mamba-3, forward and backward. See decayed/reference.py for the
// recurrence and decayed/matmul.py for the sums computed here.
//
// Visits are cut into chunks of SSD_CHUNK. Inside a chunk: masked products; from chunk to chunk: one
// state (N, P) a head. The forward keeps the state after each chunk; the backward recomputes the
// rest, walking back. All matrices of a chunk are float, padded to multiples of PAD with zeros.
//
// A part is one sample, one group and a range of its heads. The gradients of q and k are summed over
// the heads of a part, then over parts in a fixed order.
#pragma once
#include "product.h"

constexpr int SSD_CHUNK = 64;

// Tensors lie densely but for q, k, v and grad_y, whose positions are `*_stride` elements apart.
struct SsdArgs {
  const void *q, *k, *v, *grad_y;  // (B, L, G, N) twice, (B, L, H, P) twice; float or bf16
  const float *log_decay, *scale, *diagonal;  // (B, L, H), the last two or null
  const int64_t* order;            // (K) or (B, K), or null
  const float* stretch;            // 1 + gap, (K) or (B, K), or null
  float* states;                   // (B, chunks - 1, H, padded N, padded P)
  void *y, *gq, *gk, *gv;          // as the inputs, dense; unvisited rows are not written
  float *glog_decay, *gscale, *gdiagonal;
  GompParallel parallel;
  int64_t q_stride, k_stride, v_stride, grad_y_stride;
  int64_t order_stride, stretch_stride;  // 0 where shared by the samples
  int64_t batch, length, visits, groups, state, heads, channels, threads;
};

template <class T>
class Ssd {
  const SsdArgs& a;
  const Threads threads{a.parallel, (int)a.threads};
  const int64_t K = a.visits, G = a.groups, H = a.heads, N = a.state, P = a.channels;
  const int64_t NP = padded(N), PP = padded(P), TP = SSD_CHUNK;
  const int64_t per_group = H / G, chunks = ceil_div(K, SSD_CHUNK);
  const int64_t splits = std::max<int64_t>(
      1, std::min(per_group, ceil_div(4 * a.threads, a.batch * G)));

  int64_t position(int64_t b, int64_t k) const {
    return b * a.length + (a.order ? a.order[b * a.order_stride + k] : k);
  }
  float stretch(int64_t b, int64_t k) const {
    return a.stretch ? a.stretch[b * a.stretch_stride + k] : 1.f;
  }
  // The state after a chunk.
  float* state_after(int64_t b, int64_t chunk, int64_t h) const {
    return a.states + ((b * (chunks - 1) + chunk) * H + h) * NP * PP;
  }

  // One chunk of one group, and of one of its heads at a time.
  struct Tile {
    int64_t b, chunk, steps, rows;  // rows: steps padded
    Buffer q, k, kT, scores;        // (T, N), (T, N), (N, T), (T, T)
    Buffer v, to_end_v, out;        // (T, P); v times scale and its decay until the chunk's end
    Buffer masked;                  // (T, T), scores times decays and scale, plus the diagonal
    // In units of log 2: the sum of log decays from the chunk's start on, and what its rounding to
    // float lost: the difference of two long sums must be exact.
    float high[SSD_CHUNK], low[SSD_CHUNK];
    float from_start[SSD_CHUNK], to_end[SSD_CHUNK], whole;
    float scale[SSD_CHUNK], diagonal[SSD_CHUNK], scaled_to_end[SSD_CHUNK];
    Tile(int64_t NP, int64_t PP)
        : q(SSD_CHUNK * NP), k(SSD_CHUNK * NP), kT(SSD_CHUNK * NP), scores(SSD_CHUNK * SSD_CHUNK),
          v(SSD_CHUNK * PP), to_end_v(SSD_CHUNK * PP), out(SSD_CHUNK * PP),
          masked(SSD_CHUNK * SSD_CHUNK) {}
  };

  // Rows of a chunk, `width` numbers each from `offset` on, to (T, width padded).
  void gather(const Tile& t, const void* from, int64_t stride, int64_t offset, int64_t width,
              float* to) const {
    const int64_t wide = padded(width);
    for (int64_t i = 0; i < t.rows; ++i, to += wide) {
      if (i >= t.steps) {
        std::memset(to, 0, 4 * wide);
        continue;
      }
      const T* row = (const T*)from + position(t.b, t.chunk * SSD_CHUNK + i) * stride + offset;
      for (int64_t j = 0; j < wide; j += W)
        store_full(to + j, load(row + j, (int)std::max<int64_t>(0, std::min<int64_t>(W, width - j))));
    }
  }
  // The way back of gather, into a dense tensor whose positions have `count` rows of `width`.
  void scatter(const Tile& t, const float* from, int64_t count, int64_t row, int64_t width,
               void* into) const {
    for (int64_t i = 0; i < t.steps; ++i, from += padded(width)) {
      T* to = (T*)into + (position(t.b, t.chunk * SSD_CHUNK + i) * count + row) * width;
      for (int64_t j = 0; j < width; j += W)
        store(to + j, load_full(from + j), (int)std::min<int64_t>(W, width - j));
    }
  }

  void load_group(Tile& t, int64_t b, int64_t chunk, int64_t g) const {
    t.b = b, t.chunk = chunk;
    t.steps = std::min<int64_t>(SSD_CHUNK, K - chunk * SSD_CHUNK), t.rows = padded(t.steps);
    gather(t, a.q, a.q_stride, g * N, N, t.q.data());
    gather(t, a.k, a.k_stride, g * N, N, t.k.data());
    transpose(t.k.data(), t.kT.data(), t.rows, NP);
    multiply<INTO_LOWER>({t.q.data(), NP, 1, t.kT.data(), t.rows, t.scores.data(), TP, t.rows, NP,
                          t.rows});
  }

  void load_head(Tile& t, int64_t h) const {
    gather(t, a.v, a.v_stride, h * P, P, t.v.data());
    double sum = 0.;
    double sums[SSD_CHUNK];
    for (int64_t i = 0; i < t.rows; ++i) {
      t.scale[i] = t.diagonal[i] = 0.f;
      if (i < t.steps) {
        const int64_t k = t.chunk * SSD_CHUNK + i, at = position(t.b, k) * H + h;
        t.scale[i] = a.scale ? a.scale[at] : 1.f;
        t.diagonal[i] = a.diagonal ? a.diagonal[at] : 0.f;
        const double step = (double)a.log_decay[at] * stretch(t.b, k);
        sum += step < -1e4 ? -1e4 : step;  // is zero as well, and sums stay exact
      }
      sums[i] = sum * 1.4426950408889634;
      t.high[i] = (float)sums[i], t.low[i] = (float)(sums[i] - t.high[i]);
    }
    for (int64_t i = 0; i < t.rows; ++i) t.to_end[i] = (float)(sums[t.rows - 1] - sums[i]);
    for (int64_t i = 0; i < t.rows; i += W) {
      store_full(t.from_start + i, exp2_(load_full(t.high + i)));
      const vf to_end = exp2_(load_full(t.to_end + i));
      store_full(t.to_end + i, to_end);
      store_full(t.scaled_to_end + i, to_end * load_full(t.scale + i));
    }
    t.whole = t.from_start[t.rows - 1];
    scale_rows(t, t.v.data(), t.scaled_to_end, t.to_end_v.data());
  }
  void scale_rows(const Tile& t, const float* from, const float* by, float* to) const {
    for (int64_t i = 0; i < t.rows; ++i)
      for (int64_t p = i * PP; p < (i + 1) * PP; p += W) store_full(to + p, by[i] * load_full(from + p));
  }

  // Decays from visits j0, ..., j0 + W - 1 to visit i; 0 where they come later.
  ALWAYS_INLINE vf decays(const Tile& t, int64_t i, int64_t j0) const {
    vf exponent = (t.high[i] - load_full(t.high + j0)) + (t.low[i] - load_full(t.low + j0));
    vf decay = exp2_(exponent);
    return j0 + W <= i ? decay : lanes_below((int)(i - j0) + 1) ? decay : (vf){};
  }
  static ALWAYS_INLINE vi lanes_below(int n) {
    vi lane;
    for (int l = 0; l < W; ++l) lane[l] = l;
    return lane < n;
  }

  void add_diagonal(Tile& t) const {
    for (int64_t i = 0; i < t.rows; ++i) t.masked.data()[i * TP + i] += t.diagonal[i];
  }

  void forward_part(int64_t b, int64_t g, int64_t split) {
    Tile t(NP, PP);
    const int64_t h0 = g * per_group;
    for (int64_t c = 0; c < chunks; ++c) {
      load_group(t, b, c, g);
      for (int64_t h = h0 + per_group * split / splits; h < h0 + per_group * (split + 1) / splits;
           ++h) {
        load_head(t, h);
        for (int64_t i = 0; i < t.rows; ++i)
          for (int64_t j = 0; j <= i; j += W)
            store_full(t.masked.data() + i * TP + j,
                       load_full(t.scores.data() + i * TP + j) * decays(t, i, j) *
                           load_full(t.scale + j));
        add_diagonal(t);
        Product y{t.masked.data(), TP, 1, t.v.data(), PP, t.out.data(), PP, t.rows, t.rows, PP};
        if (c > 0) {
          multiply<ALL>({t.q.data(), NP, 1, state_after(b, c - 1, h), PP, t.out.data(), PP, t.rows,
                         NP, PP});
          y.base = y.out, y.scale = t.from_start, y.scale_step = 1;
        }
        multiply<LOWER>(y);
        scatter(t, t.out.data(), H, h, P, a.y);
        if (c + 1 == chunks) continue;
        Product state{t.k.data(), 1, NP, t.to_end_v.data(), PP, state_after(b, c, h), PP, NP, t.rows, PP};
        if (c > 0) state.base = state_after(b, c - 1, h), state.scale = &t.whole;
        multiply<ALL>(state);
      }
    }
  }

  // What the backward needs beside a Tile.
  struct BackTile {
    Buffer g, from_start_g, vT, read;          // (T, P), (T, P), (P, T), (T, P)
    Buffer grad_scores, grad_masked;           // (T, T): over the heads of the group, of one head
    Buffer beforeT, afterT, grad_q_head;       // (P, N), (P, N), (T, N)
    float inside[SSD_CHUNK], reads[SSD_CHUNK], written[SSD_CHUNK];
    float grad_scale[SSD_CHUNK];
    BackTile(int64_t NP, int64_t PP)
        : g(SSD_CHUNK * PP), from_start_g(SSD_CHUNK * PP), vT(SSD_CHUNK * PP), read(SSD_CHUNK * PP),
          grad_scores(SSD_CHUNK * SSD_CHUNK), grad_masked(SSD_CHUNK * SSD_CHUNK), beforeT(NP * PP),
          afterT(NP * PP), grad_q_head(SSD_CHUNK * NP) {}
  };

  // to[i] = the sum of row i of x * y, both (T, width).
  void row_products(const Tile& t, const float* x, const float* y, int64_t width, float* to) const {
    vf sums[SSD_CHUNK];
    for (int64_t i = 0; i < t.rows; ++i) {
      vf sum = {};
      for (int64_t j = i * width; j < (i + 1) * width; j += W) sum += load_full(x + j) * load_full(y + j);
      sums[i] = sum;
    }
    for (int64_t i = 0; i < t.rows; i += W) sum_lanes(sums + i, to + i);
  }

  // Masked scores of a head; its part of the gradients of scores and scale; for each step the sum over
  // the pairs of visits between which it lies (never a difference of sums: strong decays would
  // drown in its rounding).
  void inside_chunk(Tile& t, BackTile& s) const {
    vf later[SSD_CHUNK / W] = {}, sums[SSD_CHUNK];
    for (int64_t i = t.rows - 1; i >= 0; --i) {
      vf sum = {};
      for (int64_t j = 0; j <= i; j += W) {
        const int64_t at = i * TP + j;
        const vf decay = decays(t, i, j), of_masked = load_full(s.grad_masked.data() + at);
        const vf decayed = load_full(t.scores.data() + at) * decay, scale = load_full(t.scale + j);
        store_full(t.masked.data() + at, decayed * scale);
        float* of_scores = s.grad_scores.data() + at;
        store_full(of_scores, load_full(of_scores) + of_masked * (decay * scale));
        const vf pairs = (later[j / W] += decayed * of_masked) * scale;
        sum += j + W <= i ? pairs : lanes_below((int)(i - j)) ? pairs : (vf){};
      }
      sums[i] = sum;
    }
    for (int64_t i = 0; i < t.rows; i += W) {
      sum_lanes(sums + i, s.inside + i);
      store_full(s.grad_scale + i, later[i / W]);
    }
    add_diagonal(t);
  }

  // after: the gradient of the head's state after the chunk, replaced by that before it.
  void backward_head(Tile& t, BackTile& s, int64_t h, float* after, float* grad_q, float* grad_k) {
    const bool first = t.chunk == 0, last = t.chunk + 1 == chunks;
    const float one = 1.f;
    load_head(t, h);
    gather(t, a.grad_y, a.grad_y_stride, h * P, P, s.g.data());
    transpose(t.v.data(), s.vT.data(), t.rows, PP);
    multiply<INTO_LOWER>({s.g.data(), PP, 1, s.vT.data(), t.rows, s.grad_masked.data(), TP, t.rows,
                          PP, t.rows});
    inside_chunk(t, s);
    float through = 0.f;
    Product grad_v{t.masked.data(), 1, TP, s.g.data(), PP, t.out.data(), PP, t.rows, t.rows, PP};
    if (!last) {  // what later chunks read of these visits
      multiply<ALL>({t.k.data(), NP, 1, after, PP, t.out.data(), PP, t.rows, NP, PP});
      row_products(t, t.out.data(), t.v.data(), PP, s.written);
      for (int64_t i = 0; i < t.rows; ++i) {
        s.grad_scale[i] += t.to_end[i] * s.written[i];
        s.written[i] *= t.scaled_to_end[i];
      }
      grad_v.base = grad_v.out, grad_v.scale = t.scaled_to_end, grad_v.scale_step = 1;
      transpose(after, s.afterT.data(), NP, PP);
      multiply<ALL>({t.to_end_v.data(), PP, 1, s.afterT.data(), NP, grad_k, NP, t.rows, PP, NP,
                     grad_k, &one});
    }
    multiply<LOWER_T>(grad_v);
    scatter(t, t.out.data(), H, h, P, a.gv);
    if (!first) {  // what these visits read of earlier chunks
      const float* before = state_after(t.b, t.chunk - 1, h);
      scale_rows(t, s.g.data(), t.from_start, s.from_start_g.data());
      transpose(before, s.beforeT.data(), NP, PP);
      multiply<ALL>({s.from_start_g.data(), PP, 1, s.beforeT.data(), NP, s.grad_q_head.data(), NP,
                     t.rows, PP, NP});
      row_products(t, s.grad_q_head.data(), t.q.data(), NP, s.reads);
      for (int64_t i = 0; i < t.rows * NP; i += W)
        store_full(grad_q + i, load_full(grad_q + i) + load_full(s.grad_q_head.data() + i));
      Product state{t.q.data(), 1, NP, s.from_start_g.data(), PP, after, PP, NP, t.rows, PP};
      if (!last) {
        through = t.whole * dot(before, after, NP * PP);
        state.base = after, state.scale = &t.whole;
      }
      multiply<ALL>(state);
    }
    store_gradients(t, s, h, first, last, through);
  }
  static float dot(const float* x, const float* y, int64_t n) {
    vf sums[W] = {};
    float lanes[W];
    for (int64_t i = 0; i < n; i += W) sums[i / W % 4] += load_full(x + i) * load_full(y + i);
    sums[0] += sums[1] + sums[2] + sums[3];
    sums[1] = sums[2] = sums[3] = (vf){};
    sum_lanes(sums, lanes);
    return lanes[0];
  }

  // A step lies between: two visits of its chunk, the state and the visits from it on, the visits
  // before it and the states after, the states before and after.
  void store_gradients(const Tile& t, BackTile& s, int64_t h, bool first, bool last,
                       float through) const {
    float sum = through;
    for (int64_t i = t.steps - 1; i >= 0 && !first; --i) s.inside[i] += sum += s.reads[i];
    sum = 0.f;
    for (int64_t i = 0; i < t.steps && !last; ++i) s.inside[i] += sum, sum += s.written[i];
    for (int64_t i = 0; i < t.steps; ++i) {
      const int64_t k = t.chunk * SSD_CHUNK + i, at = position(t.b, k) * H + h;
      a.glog_decay[at] = s.inside[i] * stretch(t.b, k);
      if (a.gscale) a.gscale[at] = s.grad_scale[i];
      if (a.gdiagonal) a.gdiagonal[at] = s.grad_masked.data()[i * TP + i];
    }
  }

  // Sums of q and k: (splits, B, G, chunks, SSD_CHUNK, padded N).
  int64_t sums_at(int64_t split, int64_t b, int64_t g, int64_t chunk) const {
    return (((split * a.batch + b) * G + g) * chunks + chunk) * SSD_CHUNK * NP;
  }

  void backward_part(int64_t b, int64_t g, int64_t split, float* sums_q, float* sums_k) {
    Tile t(NP, PP);
    BackTile s(NP, PP);
    const int64_t h0 = g * per_group + per_group * split / splits,
                  h1 = g * per_group + per_group * (split + 1) / splits;
    Buffer after((h1 - h0) * NP * PP);
    for (int64_t c = chunks - 1; c >= 0; --c) {
      load_group(t, b, c, g);
      float *grad_q = sums_q + sums_at(split, b, g, c), *grad_k = sums_k + sums_at(split, b, g, c);
      std::memset(grad_q, 0, 4 * SSD_CHUNK * NP);
      std::memset(grad_k, 0, 4 * SSD_CHUNK * NP);
      std::memset(s.grad_scores.data(), 0, 4 * SSD_CHUNK * TP);
      for (int64_t h = h0; h < h1; ++h)
        backward_head(t, s, h, after.data() + (h - h0) * NP * PP, grad_q, grad_k);
      const float one = 1.f;
      multiply<LOWER>({s.grad_scores.data(), TP, 1, t.k.data(), NP, grad_q, NP, t.rows, t.rows, NP,
                       grad_q, &one});
      multiply<LOWER_T>({s.grad_scores.data(), 1, TP, t.q.data(), NP, grad_k, NP, t.rows, t.rows,
                         NP, grad_k, &one});
    }
  }

  void add_up(int64_t b, int64_t g, float* sums, void* to) const {
    Tile t(NP, PP);
    t.b = b;
    for (t.chunk = 0; t.chunk < chunks; ++t.chunk) {
      t.steps = std::min<int64_t>(SSD_CHUNK, K - t.chunk * SSD_CHUNK);
      float* total = sums + sums_at(0, b, g, t.chunk);
      for (int64_t split = 1; split < splits; ++split) {
        const float* more = sums + sums_at(split, b, g, t.chunk);
        for (int64_t i = 0; i < t.steps * NP; i += W)
          store_full(total + i, load_full(total + i) + load_full(more + i));
      }
      scatter(t, total, G, g, N, to);
    }
  }

 public:
  explicit Ssd(const SsdArgs& args) : a(args) {}

  void forward() {
    for_parts(threads, a.batch * G * splits, [&](int64_t part) {
      forward_part(part / splits / G, part / splits % G, part % splits);
    });
  }

  void backward() {
    const int64_t size = sums_at(splits, 0, 0, 0);
    Buffer sums_q(size), sums_k(size);
    for_parts(threads, a.batch * G * splits, [&](int64_t part) {
      backward_part(part / splits / G, part / splits % G, part % splits, sums_q.data(),
                    sums_k.data());
    });
    for_parts(threads, a.batch * G, [&](int64_t part) {
      add_up(part / G, part % G, sums_q.data(), a.gq);
      add_up(part / G, part % G, sums_k.data(), a.gk);
    });
  }
};
