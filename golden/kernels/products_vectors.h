// Vectors of products_native.cpp: what differs between processors, and single roundings.

#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512BW__)
constexpr int BYTES = 64;
#else
constexpr int BYTES = 32;
#endif
constexpr int LANES = BYTES / 4;

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr int PAIR_LIMIT = 1 << 30;  // sums of four products go straight to 32 bits
#elif defined(__AVX2__)
constexpr int PAIR_LIMIT = 32767;  // sums of two products saturate at 16 bits
#else
constexpr int PAIR_LIMIT = 0;
#endif
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
constexpr int HAS_FMA = 1;
#else
constexpr int HAS_FMA = 0;
#endif

typedef float Floats __attribute__((vector_size(BYTES)));
typedef float Halves __attribute__((vector_size(BYTES / 2)));
typedef double Doubles __attribute__((vector_size(BYTES)));
typedef int32_t Ints __attribute__((vector_size(BYTES)));
typedef int32_t HalfInts __attribute__((vector_size(BYTES / 2)));
typedef int64_t Longs __attribute__((vector_size(BYTES)));

// sum + products of the numbers of E that lie in a word, x in all lanes; bytes of x are unsigned.
template <class E> inline Ints dot(Ints sum, int32_t x, Ints b);

#if defined(__AVX512BW__)
template <> inline Ints dot<uint8_t>(Ints sum, int32_t x, Ints b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(x), (__m512i)b);
#else
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi32(x), (__m512i)b);
    return sum + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#endif
}
template <> inline Ints dot<int16_t>(Ints sum, int32_t x, Ints b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sum, _mm512_set1_epi32(x), (__m512i)b);
#else
    return sum + (Ints)_mm512_madd_epi16(_mm512_set1_epi32(x), (__m512i)b);
#endif
}
#elif defined(__AVX2__)
template <> inline Ints dot<uint8_t>(Ints sum, int32_t x, Ints b) {
#if defined(__AVXVNNI__)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(x), (__m256i)b);
#else
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(x), (__m256i)b);
    return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}
template <> inline Ints dot<int16_t>(Ints sum, int32_t x, Ints b) {
#if defined(__AVXVNNI__)
    return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sum, _mm256_set1_epi32(x), (__m256i)b);
#else
    return sum + (Ints)_mm256_madd_epi16(_mm256_set1_epi32(x), (__m256i)b);
#endif
}
#else
template <> inline Ints dot<uint8_t>(Ints sum, int32_t, Ints) { return sum; }  // PAIR_LIMIT is 0
template <> inline Ints dot<int16_t>(Ints sum, int32_t x, Ints b) {
    return sum + (b << 16 >> 16) * int32_t(int16_t(x)) + (b >> 16) * (x >> 16);
}
#endif

inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    Floats r;
    for (int i = 0; i < LANES; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#endif
}

inline HalfInts half_of(Ints x, int half) {
    HalfInts part;
    std::memcpy(&part, reinterpret_cast<const char*>(&x) + half * BYTES / 2, sizeof part);
    return part;
}

inline Doubles doubles(Ints x, int half) { return __builtin_convertvector(half_of(x, half), Doubles); }
inline Longs longs(Ints x, int half) { return __builtin_convertvector(half_of(x, half), Longs); }

// Products of numbers that fit 32 bits.
inline Longs short_product(Longs a, Longs b) {
#if defined(__AVX512F__)
    return (Longs)_mm512_mul_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Longs)_mm256_mul_epi32((__m256i)a, (__m256i)b);
#else
    return a * b;
#endif
}

inline Doubles widened(const float* x) {
    Halves part;
    std::memcpy(&part, x, sizeof part);
    return __builtin_convertvector(part, Doubles);
}

inline void narrowed(Doubles x, float* out) {
    const Halves part = __builtin_convertvector(x, Halves);
    std::memcpy(out, &part, sizeof part);
}

// acc + total * scale, rounded to float32 once; a product of zero leaves acc. The product is exact.
inline Doubles added(Doubles acc, Doubles total, Doubles scale) {
    const Doubles product = total * scale;
    Doubles odd;
#if defined(__AVX512DQ__)
    const __m512d t = (__m512d)acc, p = (__m512d)product;
    const __m512d below = _mm512_add_round_pd(t, p, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const __m512d above = _mm512_add_round_pd(t, p, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    // Neighbours, or equal: the one whose last bit is set, if any, is the sum rounded to odd.
    const __mmask8 take = _mm512_test_epi64_mask(_mm512_castpd_si512(below), _mm512_set1_epi64(1));
    odd = (Doubles)_mm512_mask_blend_pd(take, above, below);
#else
    const Doubles sum = acc + product, shadow = sum - acc;
    const Doubles error = (acc - (sum - shadow)) + (product - shadow);
    Longs bits = (Longs)sum;
    const Longs inexact = (error != 0.0) & (error == error) & ((bits & 1) == 0);
    const Longs outward = (error > 0.0) == (sum > 0.0);
    bits += inexact & ((outward & 2) - 1);
    odd = (Doubles)bits;
#endif
    odd = __builtin_convertvector(__builtin_convertvector(odd, Halves), Doubles);
    return product == 0.0 ? acc : odd;
}

// x 2^exponent as float32, rounded once: first to odd, to the 53 bits of a double.
inline float rounded(__int128 x, int exponent) {
    unsigned __int128 size = x < 0 ? -(unsigned __int128)x : (unsigned __int128)x;
    const uint64_t top = uint64_t(size >> 64), low = uint64_t(size);
    if (!size) return 0.0f;
    const int bits = top ? 128 - __builtin_clzll(top) : 64 - __builtin_clzll(low);
    const int drop = bits > 53 ? bits - 53 : 0;
    uint64_t kept = uint64_t(size >> drop);
    kept |= (size & (((unsigned __int128)1 << drop) - 1)) != 0;
    const uint64_t field = uint64_t(exponent + drop + 1023) << 52;  // far inside the doubles' exponents
    double power;
    std::memcpy(&power, &field, 8);
    const double value = double(kept) * power;
    return float(x < 0 ? -value : value);
}

// The fixed-point number of 32-bit digits, the lowest weighing 2^lowest, as float32, rounded once.
inline float rounded_digits(int64_t* digits, int count, int lowest) {
    bool negative = false;
    for (int turn = 0; turn < 2; ++turn) {  // the second turn, on negated digits, gives the magnitude
        for (int i = 0; i + 1 < count; ++i) {
            const int64_t carry = digits[i] >> 32;
            digits[i] -= carry * (int64_t(1) << 32), digits[i + 1] += carry;
        }
        if (turn == 0 && (negative = digits[count - 1] < 0))
            for (int i = 0; i < count; ++i) digits[i] = -digits[i];
    }
    int top = count - 1;
    while (top > 0 && !digits[top]) --top;
    const int first = top > 2 ? top - 2 : 0;  // 65 bits and more; what lies below only sets the last
    __int128 head = 0;
    for (int i = top; i >= first; --i) head = head * (__int128(1) << 32) + digits[i];
    bool more = false;
    for (int i = 0; i < first; ++i) more |= digits[i] != 0;
    head |= more;
    return rounded(negative ? -head : head, lowest + 32 * first);
}

template <class A, class W>
inline int32_t plain_dot(const uint8_t* a, const uint8_t* w, int count) {
    const A* x = reinterpret_cast<const A*>(a);
    const W* y = reinterpret_cast<const W*>(w);
    int32_t sum = 0;
    for (int i = 0; i < count; ++i) sum += int32_t(x[i]) * int32_t(y[i]);
    return sum;
}

}  // namespace
