// GELU and dropout. Arrays are float32 or bfloat16.
#include "tile.h"

namespace {

constexpr float SLOPE = 1.59576912f, CUBE = 0.044715f;  // 2 sqrt(2 / pi)
constexpr float LOG2_E = 1.44269504f;

// GPT-2's approximation by tanh: x (1 + tanh u) / 2 = x / (1 + e^(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
// y = gelu(x), or dy times the derivative of gelu at x if dy is given
template <typename Number>
void gelu(const Number* x, const Number* dy, Number* y, long size, int threads) {
  const Vector one = broadcast(1);
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < size; i += LANES) {
    Vector v = load(x + i, size - i), square = v * v;
    Vector twice_u = v * fmadd(square, broadcast(SLOPE * CUBE), broadcast(SLOPE));
    Vector s = one / (one + exp2(twice_u * broadcast(-LOG2_E)));
    Vector result = v * s;
    if (dy) {
      Vector slope = fmadd(square, broadcast(3 * SLOPE * CUBE), broadcast(SLOPE));
      Vector derivative = fmadd(result * (one - s), slope, s);
      result = derivative * load(dy + i, size - i);
    }
    store(y + i, result, size - i);
  }
}

// y = x upscale where the byte is at least `level`, else 0; `upscale` is rounded to the arrays' type
template <typename Number>
void dropout(const Number* x, const signed char* bytes, int level, float upscale, Number* y, long size, int threads) {
  Number rounded;
  store(&rounded, broadcast(upscale), 1);
  const Vector factor = broadcast(load(&rounded, 1)[0]);
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < size; i += LANES)
    store(y + i, keep(reach(bytes + i, level, size - i), load(x + i, size - i) * factor), size - i);
}

}  // namespace

using bfloat16 = unsigned short;

extern "C" void gelu_float32(const float* x, const float* dy, float* y, long size, int threads) {
  gelu(x, dy, y, size, threads);
}

extern "C" void gelu_bfloat16(const bfloat16* x, const bfloat16* dy, bfloat16* y, long size, int threads) {
  gelu(x, dy, y, size, threads);
}

extern "C" void dropout_float32(const float* x, const signed char* bytes, int level, float upscale, float* y,
                                long size, int threads) {
  dropout(x, bytes, level, upscale, y, size, threads);
}

extern "C" void dropout_bfloat16(const bfloat16* x, const signed char* bytes, int level, float upscale, bfloat16* y,
                                 long size, int threads) {
  dropout(x, bytes, level, upscale, y, size, threads);
}
