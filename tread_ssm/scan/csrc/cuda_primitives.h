// What the kernels need of a GPU, and of the element's type; the host shim of the tests has its own.

#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float exchange(float x, int mask) {  // with the lane that differs in mask
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
__device__ __forceinline__ void block_barrier() { __syncthreads(); }
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }

#if ELEMENT == 32
typedef float Element;
__device__ __forceinline__ float widen(Element x) { return x; }
__device__ __forceinline__ Element narrow(float x) { return x; }
#else  // bits: the headers of half and bfloat16 are not in every wheel
typedef unsigned short Element;
__device__ __forceinline__ float widen(Element x) {
#if ELEMENT == 17
  return __uint_as_float(static_cast<unsigned>(x) << 16);
#else
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
#endif
}
__device__ __forceinline__ Element narrow(float x) {
  Element y;
#if ELEMENT == 17
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
#endif
  return y;
}
#endif
