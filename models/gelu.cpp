// GELU in GPT-2's tanh approximation, for processors with AVX-512: x (1 + tanh u) / 2 = x / (1 + e^(-2u)) with
// u = sqrt(2 / pi) (x + 0.044715 x^3). Arrays are float32 or bfloat16.
#include "tile.h"

namespace {

constexpr float SLOPE = 1.59576912f, CUBE = 0.044715f;  // 2 sqrt(2 / pi)
constexpr float LOG2_E = 1.44269504f;

Vector read(const float* from, __mmask16 there) { return _mm512_maskz_loadu_ps(there, from); }

Vector read(const unsigned short* from, __mmask16 there) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, from)), 16));
}

void write(float* to, __mmask16 there, Vector x) { _mm512_mask_storeu_ps(to, there, x); }

void write(unsigned short* to, __mmask16 there, Vector x) {  // rounds to nearest, ties to even
  __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  bits = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  _mm256_mask_storeu_epi16(to, there, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}

// y = gelu(x), or dy times the derivative of gelu at x if dy is given
template <typename Number>
void compute(const Number* x, const Number* dy, Number* y, long size, int threads) {
  const Vector one = _mm512_set1_ps(1);
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < size; i += LANES) {
    __mmask16 there = size - i >= LANES ? 0xffff : (1 << (size - i)) - 1;
    Vector v = read(x + i, there), square = _mm512_mul_ps(v, v);
    Vector twice_u = _mm512_mul_ps(v, _mm512_fmadd_ps(square, _mm512_set1_ps(SLOPE * CUBE), _mm512_set1_ps(SLOPE)));
    Vector s = _mm512_div_ps(one, _mm512_add_ps(one, exp2(_mm512_mul_ps(twice_u, _mm512_set1_ps(-LOG2_E)))));
    Vector result = _mm512_mul_ps(v, s);
    if (dy) {
      Vector slope = _mm512_fmadd_ps(square, _mm512_set1_ps(3 * SLOPE * CUBE), _mm512_set1_ps(SLOPE));
      Vector derivative = _mm512_fmadd_ps(_mm512_mul_ps(result, _mm512_sub_ps(one, s)), slope, s);
      result = _mm512_mul_ps(derivative, read(dy + i, there));
    }
    write(y + i, there, result);
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
