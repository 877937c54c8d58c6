// Sixteen lanes as one AVX-512 register. Included by avx512.cpp only, inside its namespace.
// simd_avx2.h offers the same names on two registers, and the kernels are written on these names alone.

constexpr int TILE_ROWS = 6;       // activations per tile of a matrix product: 6 x 4 accumulators leave room for weights
constexpr int TILE_ROWS_INT8 = 6;  // 6 x 2 integer and as many float accumulators
constexpr bool HAS_WIDE_TILES = true;

struct F {
  __m512 v;
};
inline F zero() { return {_mm512_setzero_ps()}; }
inline F set1(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
// Lanes below n of a, the others of b.
inline F first(int n, F a, F b) { return {_mm512_mask_mov_ps(b.v, static_cast<__mmask16>((1u << n) - 1), a.v)}; }
inline float sum(F a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(F a) { return _mm512_reduce_max_ps(a.v); }

// 2^n for lanes that hold whole numbers from -126 to 127.
inline F power_of_two(F n) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}
inline F nearest(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F zero_below(F x, float limit, F a) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_GE_OQ), a.v)};
}

inline F load_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline F load_bf16(const uint16_t* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// To the nearest, ties to even, as torch rounds.
inline void store_bf16(uint16_t* p, F a) {
  __m512i bits = _mm512_castps_si512(a.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}
inline void store_int8(int8_t* p, F a) {  // lanes hold whole numbers from -127 to 127
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
inline int sum_int8(F a) { return _mm512_reduce_add_epi32(_mm512_cvtps_epi32(a.v)); }

// Sixteen sums of products of four 8-bit numbers; w is unsigned: a weight plus 128.
struct I {
  __m512i v;
};
struct W8 {
  __m512i v;
};
inline W8 load_weights(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
// The sum begins with -128 times the sum of the activations, which takes the weights' offset out again.
inline I begin_sum(int32_t offset) { return {_mm512_set1_epi32(offset)}; }
inline I add_products(I sum, W8 w, int32_t four_activations) {
  return {_mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(four_activations))};
}
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }

// Products of bfloat16 pairs, summed in float32.
struct B {
  __m512i v;
};
inline B load_pairs(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
inline B set1_pair(uint32_t pair) { return {_mm512_set1_epi32(static_cast<int>(pair))}; }
inline F fma_pairs(B a, B b, F c) {
#ifdef KERNELS_BF16
  return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
#else
  __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  __m512 odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a.v, mask)),
                               _mm512_castsi512_ps(_mm512_and_si512(b.v, mask)), c.v);
  return {_mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16)),
                          _mm512_castsi512_ps(_mm512_slli_epi32(b.v, 16)), odd)};
#endif
}
// Two rows of bfloat16 as pairs: (a[0], b[0]), (a[1], b[1]), ...
inline void store_as_pairs(uint32_t* p, const uint16_t* a, const uint16_t* b) {
  __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
  __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
  _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

// A square of 32-bit values: out[column * stride + row] = rows[row][column].
inline void transpose(const uint32_t* const rows[16], uint32_t* out, int stride) {
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(rows[i]);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(out + i * stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(out + (i + 4) * stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_si512(out + (i + 8) * stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    _mm512_storeu_si512(out + (i + 12) * stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
  }
}
