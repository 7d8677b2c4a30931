// Exponentials of the output head's logits and their products.
// All arrays are float32. V words, C channels (a multiple of 16); rows come in blocks of 64: x and dx (blocks, C, 64),
// e (blocks, V, 64).
#include "tile.h"

namespace {

constexpr int ROWS = 64;   // rows per block
constexpr int WORDS = 96;  // words at a time: their exponentials for 64 rows stay in L1

// Compute 2^(w x - shift) for m words and 64 rows, add it to z, and write it to e unless that is null
template <int m>
void exponentiate(const float* w, int width, const float* x, const float* shift, float* e, float* z) {
  for (int r = 0; r < ROWS; r += STRIP) {
    Tile<m, COLUMNS> tile;
    tile.zero();
    tile.add_product(width, w, width, 1, x + r, ROWS);
    for (int j = 0; j < COLUMNS; ++j) {
      int at = r + j * LANES;
      Vector sum = load(z + at), less = load(shift + at);
      for (auto& row : tile.sums) {
        row[j] = exp2(row[j] - less);
        sum += row[j];
      }
      store(z + at, sum);
    }
    if (e) tile.store(e + r, ROWS);
  }
}

// dx (m, 64) += w^T e over `words` words
template <int m>
void add_to_dx(const float* w, int words, int width, const float* e, float* dx) {
  for (int r = 0; r < ROWS; r += STRIP) {
    Tile<m, COLUMNS> tile;
    tile.load(dx + r, ROWS);
    tile.add_product(words, w, 1, width, e + r, ROWS);
    tile.store(dx + r, ROWS);
  }
}

struct Gradient {  // dw (V, C) = e x for the first chunk, else dw += e x
  const float *e, *x;
  float* dw;
  int words, width, blocks, first;

  template <int m, int n>
  void add(int word, int column) const {
    Tile<m, n> tile;
    float* out = dw + (long)word * width + column;
    first ? tile.zero() : tile.load(out, width);
    for (long b = 0; b < blocks; ++b) {
      const float* row = e + (b * words + word) * ROWS;
      // a part of e for the next words; measured with AVX2 only, where this pass takes 15% less time with it
      for (int i = column; LANES == 8 && i < m * ROWS; i += width)
        _mm_prefetch((const char*)(row + m * ROWS + i), _MM_HINT_T0);
      tile.add_product(ROWS, row, ROWS, 1, x + b * ROWS * width + column, width);
    }
    tile.store(out, width);
  }

  // Add to m words with tiles of at most n vectors
  template <int m, int n = COLUMNS>
  void add_words(int word, int column = 0) const {
    for (; column + n * LANES <= width; column += n * LANES) add<m, n>(word, column);
    if constexpr (n > 1) add_words<m, n - 1>(word, column);
  }
};

}  // namespace

// Add each thread's sums over its words to z (threads, blocks, 64) and, if e is not null, to dx (threads, blocks, C, 64),
// and write e
extern "C" void head_forward(const float* w, int words, int width, const float* x, int blocks, const float* shift,
                             float* e, float* z, float* dx, int threads) {
#pragma omp parallel num_threads(threads)
  {
    long t = omp_get_thread_num(), count = omp_get_num_threads();
    int end = words * (t + 1) / count;
    for (int start = words * t / count; start < end; start += WORDS) {
      int stop = start + WORDS < end ? start + WORDS : end, i, c;
      for (long b = 0; b < blocks; ++b) {
        auto tile = [&](int word) { return e ? e + (b * words + start + word) * ROWS : nullptr; };
        const float *rows = x + b * width * ROWS, *first = w + (long)start * width, *less = shift + b * ROWS;
        float* sums = z + (t * blocks + b) * ROWS;
        for (i = 0; i + 6 <= stop - start; i += 6)
          exponentiate<6>(first + i * width, width, rows, less, tile(i), sums);
        for (; i < stop - start; ++i)
          exponentiate<1>(first + i * width, width, rows, less, tile(i), sums);
        if (!e) continue;
        float* gradient = dx + (t * blocks + b) * width * ROWS;
        for (c = 0; c + 6 <= width; c += 6) add_to_dx<6>(first + c, stop - start, width, tile(0), gradient + c * ROWS);
        for (; c < width; c += 2) add_to_dx<2>(first + c, stop - start, width, tile(0), gradient + c * ROWS);
      }
    }
  }
}

// Set dw (V, C) to e x for the first chunk, else add e x to it; x (blocks 64, C)
extern "C" void head_backward(const float* e, int words, int width, const float* x, int blocks, float* dw, int first,
                              int threads) {
#pragma omp parallel num_threads(threads)
  {
    long t = omp_get_thread_num(), count = omp_get_num_threads();
    Gradient gradient{e, x, dw, words, width, blocks, first};
    int word = words * t / count, end = words * (t + 1) / count;
    for (; word + 6 <= end; word += 6) gradient.add_words<6>(word);
    for (; word < end; ++word) gradient.add_words<1>(word);
  }
}
