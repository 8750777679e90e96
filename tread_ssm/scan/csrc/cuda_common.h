// What forward and backward of scan.cu share: sizes, functions of one number, shared memory, sums.

#define INLINE __device__ __forceinline__
#define UNROLL _Pragma("unroll")

// Sizes --------------------------------------------------------------------------------------

constexpr int S = 16;               // states of a thread
constexpr int WIDTH = S * LANES;    // states of a channel, those beyond N idle
constexpr int WARPS = THREADS / 32;
constexpr int CHANNELS = THREADS / LANES;  // of a block
constexpr int PARTS = CHUNK / PART;

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Functions of one number ------------------------------------------------------------------------

INLINE float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-LOG2_E * x)); }

// dt and its derivative by `raw`. log(1 + e) = e P(e) for e = exp(-|raw|) in 0..1: the relative
// error, 2e-7, stays small where dt is tiny; the logarithm of 1 + e in fp32 would be 1 % off.
struct Step {
  float dt, slope;
};

INLINE Step step(float raw) {
#if SOFTPLUS
  const float e = exp2_fast(-LOG2_E * fabsf(raw));
  float p = 5.126102361828089e-3f;
  p = fmaf(p, e, -2.9074065387248993e-2f);
  p = fmaf(p, e, 7.75160863995552e-2f);
  p = fmaf(p, e, -0.13602247834205627f);
  p = fmaf(p, e, 0.19076880812644958f);
  p = fmaf(p, e, -0.2483539879322052f);
  p = fmaf(p, e, 0.3331812024116516f);
  p = fmaf(p, e, -0.4999944567680359f);
  p = fmaf(p, e, 0.9999999403953552f);
  const float r = reciprocal(1.0f + e);
  // not fmaxf, which turns NaN into 0
  return {fmaf(p, e, raw < 0.0f ? 0.0f : raw), raw < 0.0f ? e * r : r};
#else
  return {raw, 1.0f};
#endif
}

// What threads share -----------------------------------------------------------------------------

struct __align__(8) Visit {
  unsigned row;   // of its token, in bytes from the sample's first
  float stretch;  // 1 + gap: the time over which the state decays, over dt
};

// What a block needs of a chunk.
struct __align__(16) Tile {
  float B[CHUNK][WIDTH], C[CHUNK][WIDTH];
  Visit visit[CHUNK];
};

// Offsets of 32 bits from a pointer that all threads share cost no 64-bit arithmetic.
INLINE float read(const Element* sample, unsigned bytes) {
  return widen(*reinterpret_cast<const Element*>(reinterpret_cast<const char*>(sample) + bytes));
}

INLINE void write(Element* sample, unsigned bytes, float x) {
  *reinterpret_cast<Element*>(reinterpret_cast<char*>(sample) + bytes) = narrow(x);
}

// One float for each state of a warp's threads. What backward shares: one for each part of a chunk,
// first with the states before it, then (they are read only once) with the sums of the gradients of
// B and C over the warp's channels; and one for the gradient of A, which registers cannot hold too.
union __align__(16) Slot {
  float4 own[S / 4][32];
  float sum[PART][2][WIDTH];
};

INLINE void put(Slot& slot, int lane, const float v[S]) {
  UNROLL
  for (int q = 0; q < S / 4; ++q)
    slot.own[q][lane] = {v[4 * q], v[4 * q + 1], v[4 * q + 2], v[4 * q + 3]};
}

INLINE void get(float v[S], const Slot& slot, int lane) {
  UNROLL
  for (int q = 0; q < S / 4; ++q) {
    const float4 x = slot.own[q][lane];
    v[4 * q] = x.x, v[4 * q + 1] = x.y, v[4 * q + 2] = x.z, v[4 * q + 3] = x.w;
  }
}

// What a thread is.
struct Place {
  int warp, lane;
  int share;    // which S states of the channel
  int channel;  // at most dim - 1; `inside` tells whether it is this thread's own
  int block;
  long long sample;
  bool inside;
};

INLINE Place place(int dim) {
  const int blocks = (dim + CHANNELS - 1) / CHANNELS;
  const int thread = threadIdx.x;
  Place p;
  p.warp = thread / 32;
  p.lane = thread % 32;
  p.share = thread % LANES;
  p.sample = blockIdx.x / blocks;
  p.block = blockIdx.x % blocks;
  p.channel = p.block * CHANNELS + thread / LANES;
  p.inside = p.channel < dim;
  p.channel = p.inside ? p.channel : dim - 1;
  return p;
}

// Visits from `count` on get B = C = 0.
INLINE void load_tile(Tile& tile, const Element* B, const Element* C, const long long* order,
                      const long long* gap, int start, int count, int dim, int state) {
  for (int k = threadIdx.x; k < CHUNK; k += THREADS) {
    const int visit = start + (k < count ? k : count - 1);
    const unsigned position = order ? static_cast<unsigned>(order[visit]) : visit;
    tile.visit[k].row = position * dim * sizeof(Element);
    tile.visit[k].stretch = gap ? 1.0f + static_cast<float>(gap[visit]) : 1.0f;
  }
  UNROLL
  for (int i = threadIdx.x; i < CHUNK * WIDTH; i += THREADS) {
    const int k = i / WIDTH, n = i % WIDTH;
    const bool there = k < count && n < state;
    const int visit = start + k;
    const int at = there ? (order ? static_cast<int>(order[visit]) : visit) * state + n : 0;
    tile.B[k][n] = there ? widen(B[at]) : 0.0f;
    tile.C[k][n] = there ? widen(C[at]) : 0.0f;
  }
}

// Slots --------------------------------------------------------------------------------------
//
// Slot 4 q + i of a thread holds state S * share + 4 (q ^ turn) + i of its channel. Forward has
// turn 0. Backward takes two bits of the lane: then the slots that a lane sends in the first two
// exchanges are the same in every lane, and nothing need be selected.

INLINE int first_state(int share, int q, int turn) { return S * share + 4 * (q ^ turn); }

// (WIDTH) floats of shared memory, in the order of the slots.
INLINE void load_slots(float v[S], const float* row, const int from[S / 4]) {
  UNROLL
  for (int q = 0; q < S / 4; ++q) {
    const float4 x = *reinterpret_cast<const float4*>(row + from[q]);
    v[4 * q] = x.x, v[4 * q + 1] = x.y, v[4 * q + 2] = x.z, v[4 * q + 3] = x.w;
  }
}

// Sum over a warp's channels, added up into (WIDTH) floats of shared memory.
INLINE void sum_channels(float v[S], const Place& p, float* into) {
  UNROLL
  for (int i = 0; i < 8; ++i) v[i] += exchange(v[i + 8], 16);
  UNROLL
  for (int i = 0; i < 4; ++i) v[i] += exchange(v[i + 4], 8);
  const bool high = p.lane & 4;
  const float a = (high ? v[2] : v[0]) + exchange(high ? v[0] : v[2], 4);
  const float b = (high ? v[3] : v[1]) + exchange(high ? v[1] : v[3], 4);
#if LANES == 4
  float* own = into + S * p.share + 2 * (p.lane / 4);
  own[0] = a;
  own[1] = b;
#else
  const bool odd = p.lane & 2;
  float c = (odd ? b : a) + exchange(odd ? a : b, 2);
#if LANES == 1
  c += exchange(c, 1);
  if (p.lane % 2 == 0) into[p.lane / 2] = c;
#else
  into[S * p.share + p.lane / 2] = c;
#endif
#endif
}

// Sum over the lanes of one channel, in all of them.
INLINE float sum_shares(float x) {
  UNROLL
  for (int mask = 1; mask < LANES; mask *= 2) x += exchange(x, mask);
  return x;
}

// h after a visit: exp2(time a) h + input b.
INLINE void advance(float h[S], const float a[S], const float* B, const int from[S / 4],
                    float time, float input) {
  float b[S];
  load_slots(b, B, from);
  UNROLL
  for (int j = 0; j < S; ++j) h[j] = fmaf(exp2_fast(time * a[j]), h[j], input * b[j]);
}
