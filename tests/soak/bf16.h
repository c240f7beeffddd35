// AVX-512's instructions for bfloat16 by those of every AVX-512: included before kernels.cpp.

#include <immintrin.h>

#define __AVX512BF16__ 1
#define _mm512_dpbf16_ps products_of_pairs
#define _mm512_cvtneps_pbh narrowed_to_nearest

static inline __m512 products_of_pairs(__m512 sum, __m512bh a, __m512bh b) {
  __m512i x = (__m512i)a, y = (__m512i)b, high = _mm512_set1_epi32(0xffff0000);
  sum = _mm512_fmadd_ps((__m512)_mm512_and_si512(x, high), (__m512)_mm512_and_si512(y, high), sum);
  return _mm512_fmadd_ps((__m512)_mm512_slli_epi32(x, 16), (__m512)_mm512_slli_epi32(y, 16), sum);
}
static inline __m256i narrowed_to_nearest(__m512 x) {
  __m512i u = (__m512i)x, odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i near = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  near = _mm512_mask_mov_epi32(near, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(near, 16));
}
