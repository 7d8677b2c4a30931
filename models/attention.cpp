// Causal attention for small heads. All arrays are float32.
// T positions, hs channels (a multiple of 16). The heads of all windows are numbered through.
#include <cmath>
#include <cstring>

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

// The length of rows of keys: T rounded up to whole blocks, and PADDING
long pad(long length) { return (length + QUERIES - 1) / QUERIES * QUERIES + PADDING; }

enum { Q, K, V, Y, DY, DQ, DK, DV };  // the arrays of a call

struct Array {  // (windows, heads per window, T, hs), whose channels are adjacent; strides in elements
  float* data;
  long window, head, row;

  float* at(long h, long per_window) const { return data + h / per_window * window + h % per_window * head; }
};

// Copy rows of `width` channels, whose distance changes
void copy(const float* from, long from_row, float* to, long to_row, long rows, long width) {
  for (long t = 0; t < rows; ++t) std::memcpy(to + t * to_row, from + t * from_row, width * sizeof *to);
}

struct Head {
  long length, width, padded;   // T, hs, T rounded up to whole blocks, and PADDING
  float scale, slope, upscale;  // scale and slope of base-2 scores; factor of the weights that are kept
  float *keys, *values;         // k^T and v^T, (hs, padded)
  float* rows;                  // v in the forward pass, k in the backward pass, (T, hs)
  float *dk, *dv;               // (T, hs)
  float *weights, *gradient;    // for a block of queries, (QUERIES, padded)
  float *queries, *outputs;     // the block's q and dy, (QUERIES, hs)

  Head(long length, long width, float slope, float upscale, float* scratch)
      : length(length), width(width), padded(pad(length)),
        scale(LOG2_E / std::sqrt((float)width)), slope(slope * LOG2_E), upscale(upscale), keys(scratch),
        values(keys + width * padded), rows(values + width * padded), dk(rows + width * padded),
        dv(dk + width * padded), weights(dv + width * padded), gradient(weights + QUERIES * padded),
        queries(gradient + QUERIES * padded), outputs(queries + QUERIES * width) {}

  void transpose(const float* from, long stride, float* to) const {
    for (long t = 0; t < padded; t += LANES)
      for (long d = 0; d < width; ++d)
        store(to + d * padded + t, gather(from + t * stride + d, stride, t < length ? length - t : 0));
  }

  static float dot(const float* a, const float* b, long width) {
    Vector sum{};
    for (long d = 0; d < width; d += LANES) sum = fmadd(load(a + d), load(b + d), sum);
    return ::sum(sum);
  }

  // (count, keys up to `stop`) = a b^T, with the rows of a `stride` apart and b^T (hs, padded)
  void multiply(const float* a, long stride, const float* b, int count, int stop, float* out) const {
    Product{a, stride, 1, width, b, padded, out, padded, false}.run(count, (stop + LANES - 1) / LANES * LANES);
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

  void forward(long h, const float* q, long q_row, const Dropout* dropouts, float* y, long y_row,
               float* log_sums) const {
    for (int first = 0; first < length; first += QUERIES) {
      int stop = first + QUERIES < length ? first + QUERIES : length;
      float factors[QUERIES];
      multiply(q + first * q_row, q_row, keys, stop - first, stop, weights);
      for (int i = first; i < stop; ++i) {
        float largest, *row = weights + (i - first) * padded;
        float sum = exponentiate(row, i, first, stop, h, dropouts[first / QUERIES], largest);
        log_sums[i] = largest + std::log2(sum);
        factors[i - first] = upscale / sum;
      }
      Product{weights, padded, 1, stop, rows, width, y + first * y_row, y_row, false}.run(stop - first, width);
      for (int i = first; i < stop; ++i)
        for (int d = 0; d < width; ++d) y[i * y_row + d] *= factors[i - first];
    }
  }

  // Replace query i's products q k^T by ds, times the scale of the scores, and its products dy v^T by the weights that
  // were applied to v
  void differentiate(float* row, float* other, int i, int first, int stop, long h, const Dropout& dropout,
                     float log_sum, float mean) const {
    const float factor = 1 / std::sqrt((float)width);
    for (int j = 0; j < stop; j += LANES) {
      int seen = i + 1 - j;
      Vector ds{}, applied{};
      if (seen > 0) {
        Vector p = keep(::first(seen), exp2(score(row, i, j) - broadcast(log_sum)));
        Mask kept = dropout.kept(h, i - first, j, seen);
        Vector dp = keep(kept, load(other + j) * broadcast(upscale * factor));
        ds = keep(::first(seen), p * (dp - broadcast(mean * factor)));
        applied = keep(kept, p * broadcast(upscale));
      }
      store(row + j, ds);
      store(other + j, applied);
    }
  }

  // The last block of queries sees all keys, so it comes first and writes all of dk and dv; others add to them
  void backward(long h, const float* q, long q_row, const float* y, long y_row, const float* dy, long dy_row,
                const Dropout* dropouts, const float* log_sums, float* dq, long dq_row) const {
    for (int first = (length - 1) / QUERIES * QUERIES; first >= 0; first -= QUERIES) {
      bool add = first + QUERIES < length;
      int stop = add ? first + QUERIES : length, count = stop - first;
      copy(q + first * q_row, q_row, queries, width, count, width);
      copy(dy + first * dy_row, dy_row, outputs, width, count, width);
      multiply(queries, width, keys, count, stop, weights);
      multiply(outputs, width, values, count, stop, gradient);
      for (int i = first; i < stop; ++i) {
        float mean = dot(outputs + (i - first) * width, y + i * y_row, width);
        long at = (i - first) * padded;
        differentiate(weights + at, gradient + at, i, first, stop, h, dropouts[first / QUERIES], log_sums[i], mean);
      }
      Product{weights, padded, 1, stop, rows, width, dq + first * dq_row, dq_row, false}.run(count, width);
      Product{weights, 1, padded, count, queries, width, dk, width, add}.run(stop, width);
      Product{gradient, 1, padded, count, outputs, width, dv, width, add}.run(stop, width);
    }
  }
};

}  // namespace

// arrays: see Q to DV. Forward pass: writes y and log_sums (windows, heads, T). Backward pass: writes dq, dk and dv.
// slopes (heads per window) or null; dropouts: one per 64 queries; scratch (threads, 5 hs padded + 128 (padded + hs))
extern "C" void attention(long heads, long length, long width, float upscale, const float* slopes, long per_window,
                          const Dropout* dropouts, const Array* arrays, float* log_sums, bool backward,
                          float* scratch, int threads) {
  long room = 5 * width * pad(length) + 2 * QUERIES * (pad(length) + width);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (long h = 0; h < heads; ++h) {
    Head head(length, width, slopes ? slopes[h % per_window] : 0, upscale, scratch + omp_get_thread_num() * room);
    auto at = [&](int array) { return arrays[array].at(h, per_window); };
    auto row = [&](int array) { return arrays[array].row; };
    float* sums = log_sums + h * length;
    head.transpose(at(K), row(K), head.keys);
    if (!backward) {
      copy(at(V), row(V), head.rows, width, length, width);
      head.forward(h, at(Q), row(Q), dropouts, at(Y), row(Y), sums);
      continue;
    }
    head.transpose(at(V), row(V), head.values);
    copy(at(K), row(K), head.rows, width, length, width);
    head.backward(h, at(Q), row(Q), at(Y), row(Y), at(DY), row(DY), dropouts, sums, at(DQ), row(DQ));
    copy(head.dk, width, at(DK), row(DK), length, width);
    copy(head.dv, width, at(DV), row(DV), length, width);
  }
}
