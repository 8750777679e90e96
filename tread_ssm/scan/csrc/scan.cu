// CUDA kernels of the selective scan, compiled at run time (see nvrtc.py): cuda_primitives.h,
// cuda_common.h and this file, joined. The tests compile the last two for the CPU as well.
//
// A thread owns S = 16 states of one channel, in registers, and goes through the visits one after
// the other; LANES neighbouring threads share a channel of more than 16 states. A block owns
// THREADS / LANES channels of one sample. B and C of CHUNK visits lie in shared memory; each
// visit's row of u, delta, z, y is read and written where `order` says.
//
// Forward keeps the state before every CHUNK-th visit. Backward takes the chunks from last to
// first and runs forward through each again: once to keep the state before every PART-th visit in
// shared memory, then part by part from the end, with that part's states in registers.
//
// Sums over channels (for B and C) go through the warp by exchanging halves: 16 values in each of
// 32 lanes become one value a lane in 16 shuffles instead of 80. Partial sums per block leave
// the kernel and torch adds them: no atomics, so equal inputs give equal bits.
//
// Given as macros: ELEMENT (32 float, 16 half, 17 bfloat16), LANES (1, 2, 4), SOFTPLUS, GATE (0, 1)
// and THREADS, CHUNK, PART.
// Shape legend: B batch, L positions, K visits (K <= L), D channels, N states, P channel blocks.

// Forward ------------------------------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(THREADS) scan_forward(
    const Element* u, const Element* delta, const float* A, const Element* B, const Element* C,
    const float* D, const Element* z, const float* bias, const long long* order,
    const long long* gap, Element* y, float* states, int visits, int length, int dim, int state,
    int order_stride, int gap_stride) {
  __shared__ Tile tile;
  const Place p = place(dim);
  const unsigned own = p.channel * sizeof(Element);
  const long long first = p.sample * length * dim;
  u += first, delta += first, y += first;
  if (GATE) z += first;
  B += p.sample * length * state, C += p.sample * length * state;
  if (order) order += p.sample * order_stride;
  if (gap) gap += p.sample * gap_stride;
  const int chunks = (visits + CHUNK - 1) / CHUNK;
  states += p.sample * chunks * state * dim + p.channel;

  float a[S], h[S];
  int from[S / 4];
  UNROLL
  for (int j = 0; j < S; ++j) {
    const int n = first_state(p.share, j / 4, 0) + j % 4;
    from[j / 4] = n - j % 4;
    a[j] = n < state ? A[p.channel * state + n] * LOG2_E : 0.0f;
    h[j] = 0.0f;
  }
  const float skip = D ? D[p.channel] : 0.0f, shift = bias ? bias[p.channel] : 0.0f;

  for (int start = 0; start < visits; start += CHUNK) {
    const int count = visits - start < CHUNK ? visits - start : CHUNK;
    block_barrier();
    load_tile(tile, B, C, order, gap, start, count, dim, state);
    block_barrier();
    UNROLL
    for (int j = 0; j < S; ++j) {
      const int n = S * p.share + j;
      if (p.inside && n < state) states[n * dim] = h[j];
    }
    states += state * dim;

#pragma unroll 4
    for (int k = 0; k < count; ++k) {
      const Visit visit = tile.visit[k];
      const unsigned at = visit.row + own;
      const float x = read(u, at);
      const float dt = step(read(delta, at) + shift).dt;
      advance(h, a, tile.B[k], from, dt * visit.stretch, dt * x);
      float c[S];
      load_slots(c, tile.C[k], from);
      float out = p.share == 0 ? skip * x : 0.0f;
      UNROLL
      for (int j = 0; j < S; ++j) out = fmaf(c[j], h[j], out);
      out = sum_shares(out);
      if (GATE) {
        const float gate = read(z, at);
        out *= gate * sigmoid(gate);
      }
      if (p.inside && p.share == 0) write(y, at, out);
    }
  }
}

// Backward -----------------------------------------------------------------------------------

// Blocks that should share a multiprocessor: as many as its shared memory takes, and two where three
// would leave too few registers (at three, sm_100 spills 750 bytes, sm_90 24; at two, 232 and 0).
#if __CUDA_ARCH__ == 900 && LANES < 4
#define BACKWARD_BLOCKS 3
#else
#define BACKWARD_BLOCKS 2
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BACKWARD_BLOCKS) scan_backward(
    const Element* grad_y, const Element* u, const Element* delta, const float* A,
    const Element* B, const Element* C, const float* D, const Element* z, const float* bias,
    const long long* order, const long long* gap, const float* states, Element* grad_u,
    Element* grad_delta, Element* grad_z, float* part_A, float* part_B, float* part_C,
    float* part_D, float* part_bias, int visits, int length, int dim, int state,
    int order_stride, int gap_stride) {
  __shared__ Tile tile;
  DYNAMIC_SHARED(Slot, slots);  // [PARTS + 1][WARPS]
  const Place p = place(dim);
  const unsigned own = p.channel * sizeof(Element);
  const long long first = p.sample * length * dim;
  grad_y += first, u += first, delta += first, grad_u += first, grad_delta += first;
  if (GATE) z += first, grad_z += first;
  B += p.sample * length * state, C += p.sample * length * state;
  if (order) order += p.sample * order_stride;
  if (gap) gap += p.sample * gap_stride;
  const int chunks = (visits + CHUNK - 1) / CHUNK;
  states += p.sample * chunks * state * dim + p.channel;
  const long long parts_before = static_cast<long long>(blockIdx.x) * visits * state;
  part_B += parts_before, part_C += parts_before;

  const int turn = p.lane / 8;
  const bool writes = p.inside && p.share == 0;
  float a[S], carry[S];  // carry: gradient of this visit's h that comes from the next
  int from[S / 4];
  UNROLL
  for (int j = 0; j < S; ++j) {
    const int n = first_state(p.share, j / 4, turn) + j % 4;
    from[j / 4] = n - j % 4;
    a[j] = n < state ? A[p.channel * state + n] * LOG2_E : 0.0f;
    carry[j] = 0.0f;
  }
  Slot& slot_A = slots[PARTS * WARPS + p.warp];
  put(slot_A, p.lane, carry);
  const float skip = D ? D[p.channel] : 0.0f, shift = bias ? bias[p.channel] : 0.0f;
  float sum_D = 0.0f, sum_bias = 0.0f;

  for (int chunk = chunks - 1; chunk >= 0; --chunk) {
    const int start = chunk * CHUNK;
    const int count = visits - start < CHUNK ? visits - start : CHUNK;
    const int parts = (count + PART - 1) / PART;
    load_tile(tile, B, C, order, gap, start, count, dim, state);
    block_barrier();

    float held[PART + 1][S];  // the states before each visit of a part, and after the last
    UNROLL
    for (int j = 0; j < S; ++j) {
      const int n = from[j / 4] + j % 4;
      held[0][j] = n < state ? states[(static_cast<long long>(chunk) * state + n) * dim] : 0.0f;
    }
    for (int part = 0; part < parts; ++part) {
      Slot& slot = slots[part * WARPS + p.warp];
      put(slot, p.lane, held[0]);
      if (part + 1 == parts) break;
      UNROLL
      for (int i = 0; i < PART; ++i) {
        const int k = part * PART + i;
        const Visit visit = tile.visit[k];
        const unsigned at = visit.row + own;
        const float dt = step(read(delta, at) + shift).dt;
        advance(held[0], a, tile.B[k], from, dt * visit.stretch, dt * read(u, at));
      }
    }

    for (int part = parts - 1; part >= 0; --part) {
      Slot& slot = slots[part * WARPS + p.warp];
      get(held[0], slot, p.lane);
      warp_barrier();  // the slot is now free for sums

      float x[PART], g[PART];
      Step s[PART];
      UNROLL
      for (int i = 0; i < PART; ++i) {  // visits from `count` on: dt = g = 0, nothing changes
        const int k = part * PART + i;
        const Visit visit = tile.visit[k];
        const unsigned at = visit.row + own;
        const bool valid = k < count;
        x[i] = read(u, at);
        s[i] = step(read(delta, at) + shift);
        s[i].dt = valid ? s[i].dt : 0.0f;
        g[i] = valid && p.inside ? read(grad_y, at) : 0.0f;
        const float gate = GATE ? read(z, at) : 0.0f;
        const float opened = sigmoid(gate), g_out = g[i];
        if (GATE) g[i] *= gate * opened;

        float c[S], grad_c[S];
        load_slots(c, tile.C[k], from);
        UNROLL
        for (int j = 0; j < S; ++j) held[i + 1][j] = held[i][j];
        advance(held[i + 1], a, tile.B[k], from, s[i].dt * visit.stretch, s[i].dt * x[i]);
        float out = 0.0f;
        UNROLL
        for (int j = 0; j < S; ++j) {
          if (GATE) out = fmaf(c[j], held[i + 1][j], out);
          grad_c[j] = held[i + 1][j] * g[i];
        }
        sum_channels(grad_c, p, slot.sum[i][1]);
        if (GATE) {
          out = fmaf(skip, x[i], sum_shares(out));
          const float grad_gate = g_out * out * opened * fmaf(gate, 1.0f - opened, 1.0f);
          if (writes && valid) write(grad_z, at, grad_gate);
        }
      }

      float sum_A[S];
      get(sum_A, slot_A, p.lane);
      UNROLL
      for (int i = PART - 1; i >= 0; --i) {
        const int k = part * PART + i;
        const Visit visit = tile.visit[k];
        const unsigned at = visit.row + own;
        const float time = s[i].dt * visit.stretch, input = s[i].dt * x[i];
        float b[S], c[S], grad_b[S];
        load_slots(b, tile.B[k], from);
        load_slots(c, tile.C[k], from);
        float grad_input = 0.0f, grad_time = 0.0f;
        UNROLL
        for (int j = 0; j < S; ++j) {
          const float grad_h = fmaf(c[j], g[i], carry[j]);
          grad_b[j] = grad_h * input;
          grad_input = fmaf(b[j], grad_h, grad_input);
          carry[j] = exp2_fast(time * a[j]) * grad_h;
          const float grad_exponent = carry[j] * held[i][j];
          sum_A[j] = fmaf(grad_exponent, time, sum_A[j]);
          grad_time = fmaf(grad_exponent, a[j], grad_time);
        }
        sum_channels(grad_b, p, slot.sum[i][0]);
        grad_input = sum_shares(grad_input);
        grad_time = sum_shares(grad_time) * LN_2;
        float grad_delta_k = fmaf(grad_time, visit.stretch, grad_input * x[i]) * s[i].slope;
        if (writes && k < count) {
          write(grad_u, at, fmaf(skip, g[i], grad_input * s[i].dt));
          write(grad_delta, at, grad_delta_k);
          sum_bias += grad_delta_k;
        }
        sum_D = fmaf(g[i], x[i], sum_D);
      }
      put(slot_A, p.lane, sum_A);
    }
    block_barrier();
    for (int i = threadIdx.x; i < count * WIDTH; i += THREADS) {
      const int k = i / WIDTH, n = i % WIDTH;
      if (n >= state) continue;
      float b = 0.0f, c = 0.0f;
      UNROLL
      for (int w = 0; w < WARPS; ++w) {
        b += slots[k / PART * WARPS + w].sum[k % PART][0][n];
        c += slots[k / PART * WARPS + w].sum[k % PART][1][n];
      }
      part_B[(start + k) * state + n] = b;
      part_C[(start + k) * state + n] = c;
    }
  }

  if (!p.inside) return;
  float sum_A[S];
  get(sum_A, slot_A, p.lane);
  UNROLL
  for (int j = 0; j < S; ++j) {
    const int n = from[j / 4] + j % 4;
    if (n < state) part_A[(p.sample * state + n) * dim + p.channel] = sum_A[j];
  }
  if (p.share == 0 && D) part_D[p.sample * dim + p.channel] = sum_D;
  if (p.share == 0 && bias) part_bias[p.sample * dim + p.channel] = sum_bias;
}
