// Runs the CUDA kernels of scan.cu on a CPU: every CUDA thread of a block is a fiber with its own
// stack, so that barriers and exchanges between lanes are real. Blocks run one after the other. With
// `backwards` the fibers take turns from last to first: a missing barrier then gives other bits.

#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>
#if ELEMENT == 16
#include <immintrin.h>
#endif

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(host::dynamic.data())

struct float4 {
  float x, y, z, w;
};
struct Index {
  int x;
};
static Index threadIdx, blockIdx;

namespace host {
struct Group {  // of threads that wait for each other
  int size, arrived = 0;
  long turn = 0;
};
std::vector<ucontext_t> fibers;
std::vector<std::vector<char>> stacks;
std::vector<bool> done;
std::vector<Group> warps;
Group block;
std::vector<float> posted[2], dynamic;
ucontext_t scheduler;
int current, n_threads;
bool backwards;

void next() {  // hand over to the fiber whose turn it is, or to the scheduler when all are done
  const int from = current;
  for (int i = 1; i <= n_threads; ++i) {
    const int to = (from + (backwards ? n_threads - i : i)) % n_threads;
    if (done[to]) continue;
    if (to == from) return;
    current = threadIdx.x = to;
    swapcontext(&fibers[from], &fibers[to]);
    return;
  }
  swapcontext(&fibers[from], &scheduler);
}

void wait(Group& group) {
  const long turn = group.turn;
  if (++group.arrived == group.size) {
    group.arrived = 0;
    ++group.turn;
  }
  while (group.turn == turn) next();
}
}  // namespace host

inline float exp2_fast(float x) { return exp2f(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline void block_barrier() { host::wait(host::block); }
inline void warp_barrier() { host::wait(host::warps[host::current / 32]); }
inline float exchange(float x, int mask) {
  host::Group& warp = host::warps[host::current / 32];
  std::vector<float>& posted = host::posted[warp.turn % 2];
  posted[host::current] = x;
  host::wait(warp);
  return posted[host::current ^ mask];
}

#if ELEMENT == 32
typedef float Element;
inline float widen(Element x) { return x; }
inline Element narrow(float x) { return x; }
#else
typedef unsigned short Element;
#if ELEMENT == 16
inline float widen(Element x) { return _cvtsh_ss(x); }
inline Element narrow(float x) { return _cvtss_sh(x, 0); }
#else
inline float widen(Element x) {
  const unsigned bits = static_cast<unsigned>(x) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
inline Element narrow(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  if (x != x) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#endif
#endif

#include "cuda_common.h"
#include "scan.cu"

namespace host {
template <class... P, size_t... I>
void call(void (*kernel)(P...), void** values, std::index_sequence<I...>) {
  kernel(*static_cast<P*>(values[I])...);
}
template <class... P>
void call(void (*kernel)(P...), void** values) {
  call(kernel, values, std::index_sequence_for<P...>());
}

const char* kernel;
void** values;
void body() {
  if (!strcmp(kernel, "scan_forward"))
    call(scan_forward, values);
  else
    call(scan_backward, values);
  done[current] = true;
  next();
}
}  // namespace host

extern "C" void host_launch(const char* kernel, int blocks, int threads, int shared, void** values,
                            int backwards) {
  using namespace host;
  host::kernel = kernel, host::values = values;
  host::backwards = backwards, n_threads = threads;
  fibers.resize(threads), stacks.resize(threads), done.resize(threads);
  for (auto& p : posted) p.resize(threads);
  for (int b = 0; b < blocks; ++b) {
    blockIdx.x = b;
    dynamic.assign(shared / 4, NAN);
    block = Group{threads};
    warps.assign(threads / 32, Group{32});
    for (int t = 0; t < threads; ++t) {
      stacks[t].resize(1 << 16);
      done[t] = false;
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = stacks[t].data();
      fibers[t].uc_stack.ss_size = stacks[t].size();
      fibers[t].uc_link = nullptr;
      makecontext(&fibers[t], body, 0);
    }
    current = threadIdx.x = backwards ? threads - 1 : 0;
    swapcontext(&scheduler, &fibers[current]);
  }
}
