// Causal attention for small heads, for processors with AVX-512. All arrays are float32.
// T positions, hs channels (a multiple of 16); the heads of all windows form one dimension H: q, k, v, y (H, T, hs).
#include <cmath>

#include "tile.h"

namespace {

constexpr int QUERIES = 64;  // queries per block
constexpr float LOG2_E = 1.44269504f;

struct Dropout {  // for a block of queries: the weight of key j is kept where bytes[head h + row i + j] >= level
  const signed char* bytes;
  long row, head, level;

  __mmask16 kept(long h, int i, int j, __mmask16 seen) const {
    if (!bytes) return seen;
    __m128i drawn = _mm_maskz_loadu_epi8(seen, bytes + h * head + i * row + j);
    return _mm512_mask_cmp_epi32_mask(seen, _mm512_cvtepi8_epi32(drawn), _mm512_set1_epi32(level), _MM_CMPINT_NLT);
  }
};

// Return the mask of the lanes, among keys j to j + 15, that query i sees
__mmask16 seen(int i, int j) { return i - j >= LANES - 1 ? 0xffff : (1 << (i + 1 - j)) - 1; }

struct Head {
  long length, width, padded;   // T, hs, T rounded up to whole blocks and a vector
  float scale, slope, upscale;  // scale and slope of base-2 scores; factor of the weights that are kept
  float *keys, *values;         // k^T and v^T, (hs, padded)
  float *weights, *gradient;    // for a block of queries, (QUERIES, padded)

  void transpose(const float* from, float* to) const {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i down = _mm512_mullo_epi32(lane, _mm512_set1_epi32(width));
    for (long t = 0; t < padded; t += LANES) {
      __mmask16 there = t < length ? seen(length - 1, t) : 0;
      for (long d = 0; d < width; ++d)
        _mm512_storeu_ps(to + d * padded + t,
                         _mm512_mask_i32gather_ps(_mm512_setzero_ps(), there, down, from + t * width + d, 4));
    }
  }

  static float dot(const float* a, const float* b, long width) {
    Vector sum = _mm512_setzero_ps();
    for (long d = 0; d < width; d += LANES) sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + d), _mm512_loadu_ps(b + d), sum);
    return _mm512_reduce_add_ps(sum);
  }

  // (rows, keys up to `stop`) = a b^T, with b^T (hs, padded)
  void multiply(const float* a, const float* b, int rows, int stop, float* out) const {
    Product{a, width, 1, width, b, padded, out, padded, false}.run(rows, (stop + LANES - 1) / LANES * LANES);
  }

  Vector score(const float* product, int i, int j) const {
    const Vector lane = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    Vector distance = _mm512_add_ps(_mm512_set1_ps(j - i), lane);
    Vector scaled = _mm512_mul_ps(_mm512_loadu_ps(product + j), _mm512_set1_ps(scale));
    return _mm512_fmadd_ps(distance, _mm512_set1_ps(slope), scaled);
  }

  // Replace the products of query i by 2^(score - largest), with dropout applied; return their sum before dropout
  float exponentiate(float* row, int i, int first, int stop, long h, const Dropout& dropout, float& largest) const {
    Vector most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int j = 0; j <= i; j += LANES) {
      Vector s = score(row, i, j);
      most = _mm512_mask_max_ps(most, seen(i, j), most, s);
      _mm512_storeu_ps(row + j, s);
    }
    largest = _mm512_reduce_max_ps(most);
    for (int j = 0; j < stop; j += LANES) {
      if (j > i) {
        _mm512_storeu_ps(row + j, _mm512_setzero_ps());
        continue;
      }
      __mmask16 mask = seen(i, j);
      Vector e = _mm512_maskz_mov_ps(mask, exp2(_mm512_sub_ps(_mm512_loadu_ps(row + j), _mm512_set1_ps(largest))));
      sum = _mm512_add_ps(sum, e);
      _mm512_storeu_ps(row + j, _mm512_maskz_mov_ps(dropout.kept(h, i - first, j, mask), e));
    }
    return _mm512_reduce_add_ps(sum);
  }

  void forward(long h, const float* q, const float* v, const Dropout* dropouts, float* y, float* log_sums) const {
    for (int first = 0; first < length; first += QUERIES) {
      int stop = first + QUERIES < length ? first + QUERIES : length;
      float factors[QUERIES];
      multiply(q + first * width, keys, stop - first, stop, weights);
      for (int i = first; i < stop; ++i) {
        float largest, *row = weights + (i - first) * padded;
        float sum = exponentiate(row, i, first, stop, h, dropouts[first / QUERIES], largest);
        log_sums[i] = largest + std::log2(sum);
        factors[i - first] = upscale / sum;
      }
      Product{weights, padded, 1, stop, v, width, y + first * width, width, false}.run(stop - first, width);
      for (int i = first; i < stop; ++i)
        for (int d = 0; d < width; ++d) y[i * width + d] *= factors[i - first];
    }
  }

  // Replace query i's products q k^T by ds, and its products dy v^T by the weights that were applied to v
  void differentiate(float* row, float* other, int i, int first, int stop, long h, const Dropout& dropout,
                     float log_sum, float mean) const {
    for (int j = 0; j < stop; j += LANES) {
      __mmask16 mask = seen(i, j);
      Vector ds = _mm512_setzero_ps(), applied = ds;
      if (j <= i) {
        Vector p = _mm512_maskz_mov_ps(mask, exp2(_mm512_sub_ps(score(row, i, j), _mm512_set1_ps(log_sum))));
        __mmask16 kept = dropout.kept(h, i - first, j, mask);
        Vector dp = _mm512_maskz_mul_ps(kept, _mm512_loadu_ps(other + j), _mm512_set1_ps(upscale));
        ds = _mm512_mul_ps(p, _mm512_sub_ps(dp, _mm512_set1_ps(mean)));
        applied = _mm512_maskz_mul_ps(kept, p, _mm512_set1_ps(upscale));
      }
      _mm512_storeu_ps(row + j, _mm512_maskz_mov_ps(j <= i ? mask : 0, ds));
      _mm512_storeu_ps(other + j, applied);
    }
  }

  // dq is written; dk and dv are added to
  void backward(long h, const float* q, const float* k, const float* y, const float* dy, const Dropout* dropouts,
                const float* log_sums, float* dq, float* dk, float* dv) const {
    for (int first = 0; first < length; first += QUERIES) {
      int stop = first + QUERIES < length ? first + QUERIES : length, rows = stop - first;
      multiply(q + first * width, keys, rows, stop, weights);
      multiply(dy + first * width, values, rows, stop, gradient);
      for (int i = first; i < stop; ++i) {
        float mean = dot(dy + i * width, y + i * width, width);
        long at = (i - first) * padded;
        differentiate(weights + at, gradient + at, i, first, stop, h, dropouts[first / QUERIES], log_sums[i], mean);
      }
      Product{weights, padded, 1, stop, k, width, dq + first * width, width, false}.run(rows, width);
      Product{weights, 1, padded, rows, q + first * width, width, dk, width, true}.run(stop, width);
      Product{gradient, 1, padded, rows, dy + first * width, width, dv, width, true}.run(stop, width);
    }
  }
};

}  // namespace

// Without dy: forward pass, which writes y and log_sums (H, T). With dy: backward pass, which writes dq and adds to dk
// and dv, all three without the scale of the scores. slopes (heads per window) or null; dropouts: one per 64 queries;
// scratch (threads, 2 (hs + 64) padded)
extern "C" void attention(long heads, long length, long width, float upscale, const float* slopes, long per_window,
                          const Dropout* dropouts, const float* q, const float* k, const float* v, float* y,
                          float* log_sums, const float* dy, float* dq, float* dk, float* dv, float* scratch,
                          int threads) {
  long padded = (length + QUERIES - 1) / QUERIES * QUERIES + LANES;  // rows a power of two apart share a cache set
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (long h = 0; h < heads; ++h) {
    float* room = scratch + omp_get_thread_num() * 2 * (width + QUERIES) * padded;
    float slope = slopes ? slopes[h % per_window] * LOG2_E : 0;
    Head head{length, width, padded, LOG2_E / std::sqrt((float)width), slope, upscale, room, room + width * padded,
              room + 2 * width * padded, room + (2 * width + QUERIES) * padded};
    long at = h * length * width;
    head.transpose(k + at, head.keys);
    if (!dy) {
      head.forward(h, q + at, v + at, dropouts, y + at, log_sums + h * length);
      continue;
    }
    head.transpose(v + at, head.values);
    head.backward(h, q + at, k + at, y + at, dy + at, dropouts, log_sums + h * length, dq + at, dk + at, dv + at);
  }
}
