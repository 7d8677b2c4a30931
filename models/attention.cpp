// Causal attention for small heads. All arrays are float32.
// T positions, hs channels (a multiple of 16); the heads of all windows form one dimension H: q, k, v, y (H, T, hs).
#include <cmath>

#include "tile.h"

namespace {

constexpr int QUERIES = 64;  // queries per block
constexpr int PADDING = 16;  // rows a power of two apart share a cache set
constexpr float LOG2_E = 1.44269504f;

struct Dropout {  // for a block of queries: the weight of key j is kept where bytes[head h + row i + j] >= level
  const signed char* bytes;
  long row, head, level;

  // Return the mask of those of the first n keys from j on that are kept
  Mask kept(long h, int i, int j, int n) const {
    return bytes ? reach(bytes + h * head + i * row + j, level, n) : ::first(n);
  }
};

struct Head {
  long length, width, padded;   // T, hs, T rounded up to whole blocks, and PADDING
  float scale, slope, upscale;  // scale and slope of base-2 scores; factor of the weights that are kept
  float *keys, *values;         // k^T and v^T, (hs, padded)
  float *weights, *gradient;    // for a block of queries, (QUERIES, padded)

  void transpose(const float* from, float* to) const {
    for (long t = 0; t < padded; t += LANES)
      for (long d = 0; d < width; ++d)
        store(to + d * padded + t, gather(from + t * width + d, width, t < length ? length - t : 0));
  }

  static float dot(const float* a, const float* b, long width) {
    Vector sum{};
    for (long d = 0; d < width; d += LANES) sum = fmadd(load(a + d), load(b + d), sum);
    return ::sum(sum);
  }

  // (rows, keys up to `stop`) = a b^T, with b^T (hs, padded)
  void multiply(const float* a, const float* b, int rows, int stop, float* out) const {
    Product{a, width, 1, width, b, padded, out, padded, false}.run(rows, (stop + LANES - 1) / LANES * LANES);
  }

  Vector score(const float* product, int i, int j) const {
    Vector distance = broadcast(j - i) + count();
    return fmadd(distance, broadcast(slope), load(product + j) * broadcast(scale));
  }

  // Replace the products of query i by 2^(score - largest), with dropout applied; return their sum before dropout
  float exponentiate(float* row, int i, int first, int stop, long h, const Dropout& dropout, float& largest) const {
    Vector most = broadcast(-INFINITY), sum{};
    for (int j = 0; j <= i; j += LANES) {
      Vector s = score(row, i, j);
      most = max(::first(i + 1 - j), most, s);
      store(row + j, s);
    }
    largest = ::largest(most);
    for (int j = 0; j < stop; j += LANES) {
      int seen = i + 1 - j;
      if (seen <= 0) {
        store(row + j, Vector{});
        continue;
      }
      Vector e = keep(::first(seen), exp2(load(row + j) - broadcast(largest)));
      sum += e;
      store(row + j, keep(dropout.kept(h, i - first, j, seen), e));
    }
    return ::sum(sum);
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
      int seen = i + 1 - j;
      Vector ds{}, applied{};
      if (seen > 0) {
        Vector p = keep(::first(seen), exp2(score(row, i, j) - broadcast(log_sum)));
        Mask kept = dropout.kept(h, i - first, j, seen);
        Vector dp = keep(kept, load(other + j) * broadcast(upscale));
        ds = keep(::first(seen), p * (dp - broadcast(mean)));
        applied = keep(kept, p * broadcast(upscale));
      }
      store(row + j, ds);
      store(other + j, applied);
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
  long padded = (length + QUERIES - 1) / QUERIES * QUERIES + PADDING;
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
