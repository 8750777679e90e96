// C interface of the CPU kernels, loaded with ctypes by compiled.py: no Python, no torch headers.
#include "conv.h"
#include "gate.h"
#include "scan.h"
#include "ssd.h"

// Numbering of errors: compiled.py.
enum { OK = 0, OUT_OF_RANGE = 1, VISITED_TWICE = 2, NO_MEMORY = 3 };

// Positions must lie in 0..length-1 and be distinct: a bad one would write outside the tensors.
static int check_order(const int64_t* order, int64_t rows, int64_t visits, int64_t length) {
  std::vector<char> seen;
  for (int64_t b = 0; b < rows; ++b, order += visits) {
    seen.assign(length, 0);
    for (int64_t k = 0; k < visits; ++k) {
      if (order[k] < 0 || order[k] >= length) return OUT_OF_RANGE;
      if (seen[order[k]]++) return VISITED_TWICE;
    }
  }
  return OK;
}

template <class Run>
static int guarded(const Run& run) {
  try {
    run();
    return OK;
  } catch (const std::bad_alloc&) {
    return NO_MEMORY;
  }
}

template <class Args, class Run>
static int guarded(const Args& a, const Run& run) {
  int error = OK;
  const int ran = guarded([&] {
    if (a.order) error = check_order(a.order, a.order_stride ? a.batch : 1, a.visits, a.length);
    if (error == OK) run();
  });
  return error == OK ? ran : error;
}

extern "C" {
int scan_forward(const ScanArgs* a, int is_bf16) {
  return guarded(*a, [&] { is_bf16 ? Scan<bf16>(*a).forward() : Scan<float>(*a).forward(); });
}
int scan_backward(const ScanArgs* a, int is_bf16) {
  return guarded(*a, [&] { is_bf16 ? Scan<bf16>(*a).backward() : Scan<float>(*a).backward(); });
}
int conv_forward(const ConvArgs* a, int is_bf16) {
  return guarded(*a, [&] { is_bf16 ? Conv<bf16>(*a).forward() : Conv<float>(*a).forward(); });
}
int conv_backward(const ConvArgs* a, int is_bf16) {
  return guarded(*a, [&] { is_bf16 ? Conv<bf16>(*a).backward() : Conv<float>(*a).backward(); });
}
int ssd_forward(const SsdArgs* a, int is_bf16) {
  return guarded(*a, [&] { is_bf16 ? Ssd<bf16>(*a).forward() : Ssd<float>(*a).forward(); });
}
int ssd_backward(const SsdArgs* a, int is_bf16) {
  return guarded(*a, [&] { is_bf16 ? Ssd<bf16>(*a).backward() : Ssd<float>(*a).backward(); });
}
int gate_forward(const GateArgs* a, int is_bf16) {
  return guarded([&] { is_bf16 ? Gate<bf16>(*a).forward() : Gate<float>(*a).forward(); });
}
int gate_backward(const GateArgs* a, int is_bf16) {
  return guarded([&] { is_bf16 ? Gate<bf16>(*a).backward() : Gate<float>(*a).backward(); });
}
// What selective/cpu.py must agree with; count the version up when the meaning of an argument changes.
void interface_numbers(int64_t* out) {
  const int64_t numbers[] = {3, sizeof(ScanArgs), sizeof(ConvArgs), CHUNK, STATE_PAD, CHANNEL_PAD};
  std::memcpy(out, numbers, sizeof(numbers));
}
void ssd_interface_numbers(int64_t* out) {  // likewise for decayed/cpu.py
  const int64_t numbers[] = {2, sizeof(SsdArgs), SSD_CHUNK, PAD};
  std::memcpy(out, numbers, sizeof(numbers));
}
void gate_interface_numbers(int64_t* out) {  // likewise for gated/cpu.py
  const int64_t numbers[] = {1, sizeof(GateArgs)};
  std::memcpy(out, numbers, sizeof(numbers));
}
// 2^x of `count` floats, a multiple of 16: for the tests, and for the benchmark's floor.
void exp2_array(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += W) store_full(y + i, exp2_(load_full(x + i)));
}
}
