// Vectors of float32: 16 lanes with AVX-512, 8 lanes with AVX2 and FMA. Arithmetic on them uses the compiler's operators.
#pragma once
#include <immintrin.h>

#include <cstring>

namespace {

#ifdef __AVX512F__

using Vector = __m512;
using Mask = __mmask16;
constexpr int LANES = 16;
constexpr int COLUMNS = 4;  // vectors per register tile: with 6 rows it takes 24 of the 32 registers

Vector broadcast(float x) { return _mm512_set1_ps(x); }
Vector count() { return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }
Vector load(const float* from) { return _mm512_loadu_ps(from); }
void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
Vector fmadd(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
Vector round(Vector x) { return _mm512_roundscale_ps(x, 0); }
float sum(Vector x) { return _mm512_reduce_add_ps(x); }
float largest(Vector x) { return _mm512_reduce_max_ps(x); }

// x 2^exponent, for whole exponents
Vector scale(Vector x, Vector exponent) { return _mm512_scalef_ps(x, exponent); }

// The first n lanes, n >= 0
Mask first(long n) { return n >= LANES ? 0xffff : (1 << n) - 1; }

// x in the lanes of the mask, 0 in others
Vector keep(Mask mask, Vector x) { return _mm512_maskz_mov_ps(mask, x); }

// The larger of a and b in the lanes of the mask, a in others
Vector max(Mask mask, Vector a, Vector b) { return _mm512_mask_max_ps(a, mask, a, b); }

// Those of the first n lanes whose byte is at least `level`
Mask reach(const signed char* bytes, int level, long n) {
  Mask mask = first(n);
  __m512i values = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, bytes));
  return _mm512_mask_cmp_epi32_mask(mask, values, _mm512_set1_epi32(level), _MM_CMPINT_NLT);
}

// The first n of elements that lie `stride` apart, then zeros
Vector gather(const float* from, int stride, long n) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  __m512i at = _mm512_mullo_epi32(lane, _mm512_set1_epi32(stride));
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), first(n), at, from, 4);
}

// The first n elements, then zeros
Vector load(const float* from, long n) { return _mm512_maskz_loadu_ps(first(n), from); }
void store(float* to, Vector x, long n) { _mm512_mask_storeu_ps(to, first(n), x); }

// Likewise in bfloat16; rounds to nearest, ties to even
Vector load(const unsigned short* from, long n) {
  __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

void store(unsigned short* to, Vector x, long n) {
  __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  bits = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  _mm256_mask_storeu_epi16(to, first(n), _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}

#else

using Vector = __m256;
using Mask = __m256i;  // all bits of a lane
constexpr int LANES = 8;
constexpr int COLUMNS = 2;  // with 6 rows it takes 12 of the 16 registers

Vector broadcast(float x) { return _mm256_set1_ps(x); }
Vector count() { return _mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0); }
Vector load(const float* from) { return _mm256_loadu_ps(from); }
void store(float* to, Vector x) { _mm256_storeu_ps(to, x); }
Vector fmadd(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
Vector round(Vector x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

float sum(Vector x) {
  __m128 y = _mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1);
  y += _mm_movehl_ps(y, y);
  return y[0] + y[1];
}

float largest(Vector x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return y[0] > y[1] ? y[0] : y[1];
}

// x 2^exponent, for whole exponents; 0 below 2^-126, infinite from 2^128
Vector scale(Vector x, Vector exponent) {
  Vector bounded = _mm256_min_ps(broadcast(128), _mm256_max_ps(broadcast(-127), exponent));
  // exponent + 127 are then the lowest bits, which become the bits of a float's exponent
  __m256i bits = _mm256_castps_si256(bounded + broadcast(0x1.8p23f + 127));
  return x * _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
}

Mask first(long n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < LANES ? n : LANES), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}

Vector keep(Mask mask, Vector x) { return _mm256_and_ps(_mm256_castsi256_ps(mask), x); }

Vector max(Mask mask, Vector a, Vector b) {
  return _mm256_blendv_ps(a, _mm256_max_ps(a, b), _mm256_castsi256_ps(mask));
}

// 16 bytes with the first n of 8 elements, then zeros
template <typename Number>
__m128i load_part(const Number* from, long n) {
  Number part[16 / sizeof(Number)] = {};
  for (long i = 0; i < n; ++i) part[i] = from[i];
  return _mm_loadu_si128((const __m128i*)part);
}

Mask reach(const signed char* bytes, int level, long n) {
  __m128i part = n < LANES ? load_part(bytes, n) : _mm_loadl_epi64((const __m128i*)bytes);
  return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(level), _mm256_cvtepi8_epi32(part)), first(n));
}

Vector gather(const float* from, int stride, long n) {
  __m256i at = _mm256_mullo_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), _mm256_set1_epi32(stride));
  return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), from, at, _mm256_castsi256_ps(first(n)), 4);
}

Vector load(const float* from, long n) { return n < LANES ? _mm256_maskload_ps(from, first(n)) : load(from); }
void store(float* to, Vector x, long n) { n < LANES ? _mm256_maskstore_ps(to, first(n), x) : store(to, x); }

Vector load(const unsigned short* from, long n) {
  __m128i part = n < LANES ? load_part(from, n) : _mm_loadu_si128((const __m128i*)from);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(part), 16));
}

void store(unsigned short* to, Vector x, long n) {
  __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256i none = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  bits = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), none), 16);
  __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  std::memcpy(to, &halves, (n < LANES ? n : LANES) * sizeof *to);
}

#endif

}  // namespace
