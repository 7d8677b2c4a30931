// Products and exponentials in registers. All arrays are float32.
#pragma once
#include <omp.h>

#include "vector.h"

namespace {

constexpr int STRIP = COLUMNS * LANES;  // columns of a register tile

template <int m, int n>
struct Tile {  // m x n vectors of sums, kept in registers
  Vector sums[m][n];

  void zero() {
    for (auto& row : sums)
      for (auto& sum : row) sum = Vector{};
  }

  void load(const float* from, long stride) {
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) sums[i][j] = ::load(from + i * stride + j * LANES);
  }

  void store(float* to, long stride) const {
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) ::store(to + i * stride + j * LANES, sums[i][j]);
  }

  // sums(i, j) += sum over k of a(i, k) b(k, j); a's elements lie at i by_row + k by_depth, b's rows `stride` apart
  void add_product(int depth, const float* a, long by_row, long by_depth, const float* b, long stride) {
    for (int k = 0; k < depth; ++k, a += by_depth, b += stride) {
      Vector row[n];
      for (int j = 0; j < n; ++j) row[j] = ::load(b + j * LANES);
      for (int i = 0; i < m; ++i) {
        Vector value = broadcast(a[i * by_row]);
        for (int j = 0; j < n; ++j) sums[i][j] = fmadd(value, row[j], sums[i][j]);
      }
    }
  }
};

// 2^x = 2^f 2^(x - f) with |f| <= 1/2 and the polynomial for 2^f whose largest relative error is smallest: 1.7e-7 with
// the rounding; infinite above 128
Vector exp2(Vector x) {
  constexpr float c[] = {1.3264727e-3f, 9.6715130e-3f, 5.5507336e-2f, 2.4022242e-1f, 6.9314700e-1f, 1.0f};
  Vector whole = round(x), f = x - whole, y = broadcast(c[0]);
  for (int i = 1; i < 6; ++i) y = fmadd(y, f, broadcast(c[i]));
  return scale(y, whole);
}

struct Product {  // out (rows, columns) = a b, or += if `add`; columns: a multiple of LANES; a's layout: Tile::add_product
  const float* a;
  long by_row, by_depth, depth;
  const float* b;
  long b_stride;
  float* out;
  long out_stride;
  bool add;

  template <int m, int n>
  void compute(int row, int column) const {
    Tile<m, n> tile;
    float* sums = out + row * out_stride + column;
    add ? tile.load(sums, out_stride) : tile.zero();
    tile.add_product(depth, a + row * by_row, by_row, by_depth, b + column, b_stride);
    tile.store(sums, out_stride);
  }

  // Compute m rows with tiles of at most n vectors
  template <int m, int n = COLUMNS>
  void compute_rows(int row, int columns, int column = 0) const {
    for (; column + n * LANES <= columns; column += n * LANES) compute<m, n>(row, column);
    if constexpr (n > 1) compute_rows<m, n - 1>(row, columns, column);
  }

  void run(int rows, int columns) const {
    int row = 0;
    if (columns == LANES)  // one column of vectors
      for (; row + 12 <= rows; row += 12) compute<12, 1>(row, 0);
    for (; row + 6 <= rows; row += 6) compute_rows<6>(row, columns);
    for (; row < rows; ++row) compute_rows<1>(row, columns);
  }
};

}  // namespace
