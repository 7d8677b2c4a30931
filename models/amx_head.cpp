// The output head's products in bfloat16, for processors with AMX: like compiled_head.cpp, with float32 sums.
// Factors are stored as tiles of 16 x 64 bytes in the order in which they are multiplied. A row of a left tile has 32
// elements of one row, a row of a right tile has 16 pairs of elements of two rows. V words, C channels (a multiple of
// 16), K steps of 32 channels, rows in blocks of 32.
#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

using Half = unsigned short;  // the bits of a bfloat16
constexpr int SIDE = 16;
constexpr int TILE = SIDE * 2 * SIDE;  // elements in a factor's tile
constexpr int SUMS = SIDE * SIDE;      // elements in a tile of sums
constexpr int WORDS = 256;             // words at a time: their exponentials for 32 rows stay in L1
constexpr int GROUP = WORDS / SIDE, STEPS = GROUP / 2;

struct alignas(64) Shapes {
  unsigned char palette = 1, start = 0, unused[14] = {};
  unsigned short bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Add left (m, depth) right (depth, n) to sums (m, n) in tiles 0 to 3; tiles of a factor are `next` and `step` apart
template <int m, int n>
void add_product(int depth, const Half* left, long next, long step, const Half* right, long right_step) {
  for (int k = 0; k < depth; ++k, left += step * TILE, right += right_step * TILE) {
    _tile_loadd(4, left, 64);
    _tile_loadd(6, right, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (n > 1) {
      _tile_loadd(7, right + TILE, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (m > 1) {
      _tile_loadd(5, left + next * TILE, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (n > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
}

void zero() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

template <int m, int n>
void load(const float* from, long down, long right, long stride) {
  _tile_loadd(0, from, stride);
  if (n > 1) _tile_loadd(1, from + right, stride);
  if (m > 1) _tile_loadd(2, from + down, stride);
  if (m > 1 && n > 1) _tile_loadd(3, from + down + right, stride);
}

template <int m, int n>
void store(float* to, long down, long right, long stride) {
  _tile_stored(0, to, stride);
  if (n > 1) _tile_stored(1, to + right, stride);
  if (m > 1) _tile_stored(2, to + down, stride);
  if (m > 1 && n > 1) _tile_stored(3, to + down + right, stride);
}

// a compiler barrier: tile intrinsics do not declare which memory they read
void written() { asm volatile("" ::: "memory"); }

__m512i round_pair(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// Return (a0, b0, a1, b1, ...)
__m512i interleave(__m512 a, __m512 b) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, round_pair(a, b));
}

// 2^x with a relative error of 3e-6, a hundredth of bfloat16's; infinite above 128
__m512 exp2(__m512 x) {
  constexpr float c[] = {9.57009e-3f, 5.591786e-2f, 2.4024745e-1f, 6.9312181e-1f, 9.9999926e-1f};
  __m512 whole = _mm512_roundscale_ps(x, 0), f = _mm512_sub_ps(x, whole), y = _mm512_set1_ps(c[0]);
  for (int i = 1; i < 5; ++i) y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(c[i]));
  return _mm512_scalef_ps(y, whole);
}

// Round `count` words of w (V, C) to the left factors of w x (K, GROUP tiles) and of w^T e (C / 16, STEPS tiles)
void round_words(const float* w, int count, int width, Half* rows, Half* columns) {
  const __m512 none = _mm512_setzero_ps();
  const __m512i down = _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 4);
  for (int word = 0; word < WORDS; word += 2)
    for (int c = 0; c < width; c += 2 * SIDE) {
      __m512 part[2][2];
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) {
          bool there = word + i < count && c + j * SIDE < width;
          part[i][j] = there ? _mm512_loadu_ps(w + (long)(word + i) * width + c + j * SIDE) : none;
        }
      Half* row = rows + ((c / 32) * GROUP + word / SIDE) * TILE + (word % SIDE) * 32;
      for (int i = 0; i < 2; ++i) _mm512_storeu_si512(row + i * 32, round_pair(part[i][0], part[i][1]));
      for (int j = 0; j < 2 && c + j * SIDE < width; ++j) {
        Half* column = columns + ((c / SIDE + j) * STEPS + word / 32) * TILE + word % 32;
        _mm512_i32scatter_epi32((int*)column, down, interleave(part[0][j], part[1][j]), 4);
      }
    }
  written();
}

// Turn products (2, 2 tiles) of 32 words, `count` of them real, and 32 rows into e as a left and as a right factor
void exponentiate(const float* products, int count, const float* shift, Half* left, Half* right, float* z) {
  __m512 less[2], sum[2];
  for (int j = 0; j < 2; ++j) {
    less[j] = _mm512_loadu_ps(shift + j * SIDE);
    sum[j] = _mm512_loadu_ps(z + j * SIDE);
  }
  for (int word = 0; word < 32; word += 2) {
    __m512 e[2][2];
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        const float* from = products + ((word / SIDE) * 2 + j) * SUMS + (word % SIDE + i) * SIDE;
        e[i][j] = word + i < count ? exp2(_mm512_sub_ps(_mm512_load_ps(from), less[j])) : _mm512_setzero_ps();
        sum[j] = _mm512_add_ps(sum[j], e[i][j]);
      }
      _mm512_storeu_si512(left + (word / SIDE) * TILE + (word % SIDE + i) * 32, round_pair(e[i][0], e[i][1]));
    }
    for (int j = 0; j < 2; ++j) _mm512_storeu_si512(right + j * TILE + word * SIDE, interleave(e[0][j], e[1][j]));
  }
  for (int j = 0; j < 2; ++j) _mm512_storeu_ps(z + j * SIDE, sum[j]);
}

}  // namespace

// True if this process may use AMX
extern "C" int amx_request() {
  constexpr int request = 0x1023, tile_data = 18;  // asm/prctl.h
  return __builtin_cpu_supports("avx512bf16") && !syscall(SYS_arch_prctl, request, tile_data);
}

// Write e (blocks, 2 ceil(V / 32) tiles), and add each thread's sums over its words to z (threads, blocks, 32) and to
// dx (threads, blocks, C / 16, 2 tiles of sums). w (V, C) float32, x (blocks, K, 2 tiles), scratch (threads, room)
// where room = WORDS (2 C + 16)
extern "C" void amx_forward(const float* w, int words, int width, const Half* x, int blocks, const float* shift, Half* e,
                            float* z, float* dx, Half* scratch, int threads) {
  int depth = (width + 31) / 32, all = (words + 31) / 32 * 2;
#pragma omp parallel num_threads(threads)
  {
    Shapes shapes;
    _tile_loadconfig(&shapes);
    alignas(64) float products[2][4 * SUMS];
    alignas(64) Half factor[STEPS * 2 * TILE];
    long t = omp_get_thread_num(), count = omp_get_num_threads();
    Half* rows = scratch + t * WORDS * (2 * width + 16);
    Half* columns = rows + WORDS * depth * 32;
    int end = all / 2 * (t + 1) / count * 2;
    for (int start = all / 2 * t / count * 2; start < end; start += GROUP) {
      int left = words - start * SIDE, steps = ((start + GROUP < end ? start + GROUP : end) - start) / 2;
      round_words(w + (long)start * SIDE * width, left, width, rows, columns);
      for (long b = 0; b < blocks; ++b) {
        auto multiply = [&](int s) {
          zero();
          add_product<2, 2>(depth, rows + s * 2 * TILE, 1, GROUP, x + b * depth * 2 * TILE, 2);
          store<2, 2>(products[s % 2], 2 * SUMS, SUMS, 64);
        };
        multiply(0);
        for (int s = 0; s < steps; ++s) {
          if (s + 1 < steps) multiply(s + 1);  // overlaps with the exponentials below
          exponentiate(products[s % 2], left - s * 32, shift + b * 32, e + (b * all + start + s * 2) * TILE,
                       factor + s * 2 * TILE, z + (t * blocks + b) * 32);
        }
        written();
        float* sums = dx + (t * blocks + b) * width * 32;
        for (int c = 0; c < width / SIDE; c += 2, sums += 4 * SUMS)
          if (c + 1 < width / SIDE) {
            load<2, 2>(sums, 2 * SUMS, SUMS, 64);
            add_product<2, 2>(steps, columns + c * STEPS * TILE, STEPS, 1, factor, 2);
            store<2, 2>(sums, 2 * SUMS, SUMS, 64);
          } else {
            load<1, 2>(sums, 2 * SUMS, SUMS, 64);
            add_product<1, 2>(steps, columns + c * STEPS * TILE, STEPS, 1, factor, 2);
            store<1, 2>(sums, 2 * SUMS, SUMS, 64);
          }
      }
    }
    _tile_release();
  }
}

// Set dw (2 ceil(V / 32) 16, C) float32 to e x for the first chunk, else add e x to it; x (blocks, C / 16 tiles)
extern "C" void amx_backward(const Half* e, int words, int width, const Half* x, int blocks, float* dw, int first,
                             int threads) {
  int all = (words + 31) / 32 * 2, columns = width / SIDE;
#pragma omp parallel num_threads(threads)
  {
    Shapes shapes;
    _tile_loadconfig(&shapes);
    long t = omp_get_thread_num(), count = omp_get_num_threads();
    int end = all / 2 * (t + 1) / count * 2;
    for (int word = all / 2 * t / count * 2; word < end; word += 2)
      for (int c = 0; c < columns; c += 2) {
        float* out = dw + (long)word * SIDE * width + c * SIDE;
        if (c + 1 < columns) {
          first ? zero() : load<2, 2>(out, SIDE * width, SIDE, width * 4);
          add_product<2, 2>(blocks, e + word * TILE, 1, all, x + c * TILE, columns);
          store<2, 2>(out, SIDE * width, SIDE, width * 4);
        } else {
          first ? zero() : load<2, 1>(out, SIDE * width, SIDE, width * 4);
          add_product<2, 1>(blocks, e + word * TILE, 1, all, x + c * TILE, columns);
          store<2, 1>(out, SIDE * width, SIDE, width * 4);
        }
      }
    _tile_release();
  }
}
