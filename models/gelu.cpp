// GELU in GPT-2's tanh approximation: x (1 + tanh u) / 2 = x / (1 + e^(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3).
// Arrays are float32 or bfloat16.
#include "tile.h"

namespace {

constexpr float SLOPE = 1.59576912f, CUBE = 0.044715f;  // 2 sqrt(2 / pi)
constexpr float LOG2_E = 1.44269504f;

// y = gelu(x), or dy times the derivative of gelu at x if dy is given
template <typename Number>
void compute(const Number* x, const Number* dy, Number* y, long size, int threads) {
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

}  // namespace

extern "C" void gelu_float32(const float* x, const float* dy, float* y, long size, int threads) {
  compute(x, dy, y, size, threads);
}

extern "C" void gelu_bfloat16(const unsigned short* x, const unsigned short* dy, unsigned short* y, long size,
                              int threads) {
  compute(x, dy, y, size, threads);
}
