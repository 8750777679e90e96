// Small matrix products in registers. Every matrix is padded to multiples of PAD and lies in cache.
#pragma once
#include "vec.h"

constexpr int PAD = 16;
constexpr int64_t padded(int64_t n) { return ceil_div(n, PAD) * PAD; }

// A tile of the result: ROWS rows of 2 vectors. Enough sums to hide the latency of a multiply-add;
// ROWS divides W, so that a tile never crosses the triangle of a vector on the diagonal.
constexpr int ROWS = W == 16 ? 8 : 4;

// What of a product with a lower triangular matrix is needed.
enum Part {
  ALL,
  LOWER,       // the left factor is lower triangular
  LOWER_T,     // it is the transpose of such a matrix
  INTO_LOWER,  // of the result, no more than the lower triangle is read
};

// out = scale * base + left right, row by row.
struct Product {
  const float* left;  // left(i, r) at i * left_row + r * left_step
  int64_t left_row, left_step;
  const float* right;  // right(r, j) at r * right_row + j
  int64_t right_row;
  float* out;  // rows at distance out_row
  int64_t out_row;
  int64_t rows, inner, columns;
  const float* base = nullptr;   // laid out like out, and may be out; null: zero
  const float* scale = nullptr;  // one number a row, at distance scale_step
  int64_t scale_step = 0;
};

template <int VECS>
INLINE void product_tile(const Product& p, int64_t i0, int64_t j0, int64_t r0, int64_t r1) {
  vf sum[ROWS][VECS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) sum[i][v] = (vf){};
  const float* left = p.left + i0 * p.left_row + r0 * p.left_step;
  const float* right = p.right + r0 * p.right_row + j0;
  for (int64_t r = r0; r < r1; ++r, left += p.left_step, right += p.right_row) {
    vf b[VECS];
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) b[v] = load_full(right + v * W);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const float a = left[i * p.left_row];
#pragma GCC unroll 4
      for (int v = 0; v < VECS; ++v) sum[i][v] += a * b[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < VECS; ++v) {
      const int64_t at = (i0 + i) * p.out_row + j0 + v * W;
      if (p.base) sum[i][v] += p.scale[(i0 + i) * p.scale_step] * load_full(p.base + at);
      store_full(p.out + at, sum[i][v]);
    }
}

template <Part PART>
void multiply(const Product& p) {
  for (int64_t j0 = 0; j0 < p.columns; j0 += 2 * W) {
    const bool pair = p.columns - j0 >= 2 * W;
    for (int64_t i0 = 0; i0 < p.rows; i0 += ROWS) {
      if (PART == INTO_LOWER && j0 >= i0 + ROWS) continue;
      const int64_t r0 = PART == LOWER_T ? i0 : 0, r1 = PART == LOWER ? i0 + ROWS : p.inner;
      pair ? product_tile<2>(p, i0, j0, r0, r1) : product_tile<1>(p, i0, j0, r0, r1);
    }
  }
}

// to (columns, rows) = from (rows, columns), both without gaps.
INLINE void transpose(const float* from, float* to, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i += W)
    for (int64_t j = 0; j < columns; j += W) {
      vf a[W], b[W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) a[r] = load_full(from + (i + r) * columns + j);
#pragma GCC unroll 4
      for (int m = 1; m < W; m *= 2) {  // log W perfect shuffles of the W * W numbers
#pragma GCC unroll 16
        for (int r = 0; r < W / 2; ++r) {
          b[2 * r] = SHUFFLE(a[r], a[r + W / 2], ZIP_LOW);
          b[2 * r + 1] = SHUFFLE(a[r], a[r + W / 2], ZIP_HIGH);
        }
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) a[r] = b[r];
      }
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) store_full(to + (j + r) * rows + i, a[r]);
    }
}
