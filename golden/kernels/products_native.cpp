// Matrix products of packed operands on a CPU, bit for bit those of golden/formats/products.py.
//
// A refined element is an integer, so a group's sum of products is one too, and SIMD instructions
// on integers give it exactly: of bytes (products_vectors.h) where elements fit, else of 16-bit
// numbers, in planes of limbs where they are wider. What follows depends on the accumulator:
//
// SINGLE  float32 holds the sum and the scale: one fma a group is the rounding that is defined.
// DOUBLE  float64 does: an fma rounded to odd, which leaves rounding to float32 the only one.
// EXACT   sums shifted to the least exponent of row and column and added as 64-bit integers.
//
// Operands are unpacked into rows of integers (`unpack`); columns are packed in panels of a few
// vectors, and a micro-kernel keeps the accumulators of some rows of a panel in registers.

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "products_unpack.h"
#include "products_vectors.h"

namespace {

// The caller's thread may flush subnormals or round otherwise: not in here.
struct UsualArithmetic {
    fenv_t callers;
    UsualArithmetic() { fegetenv(&callers), fesetenv(FE_DFL_ENV); }
    ~UsualArithmetic() { fesetenv(&callers); }
};

enum { SINGLE, DOUBLE, EXACT };
constexpr int PANEL_BYTES = 1 << 18;  // a block of a panel stays in the second cache

// What `multiply` is given; addends are sums of `padded` products with one scale.
struct Job {
    const void *a, *w;              // integers [rows, addends, planes, padded]
    const void *a_scales, *w_scales;  // [rows, addends]: float, double, or int32 pairs
    const int32_t* corrections;     // [columns, addends], bytes only
    const int32_t *a_lows, *w_lows;  // exponents that the shifts of EXACT start from
    float* out;
    void* panel;
    int64_t m, n, stride, addends;
    int padded, limb, unit;  // bits of a limb; EXACT: the exponent of a product of integers
};

template <int MODE> struct ScaleOf { typedef float type; };
template <> struct ScaleOf<DOUBLE> { typedef double type; };
template <> struct ScaleOf<EXACT> { typedef Shift type; };

// Planes of limbs multiply like with like: x y of two limbs is (x0 + x1)(y0 + y1) - x0 y0 - x1 y1.
constexpr int limbs_of(int planes) { return planes == 1 ? 1 : planes == 3 ? 2 : 3; }

// Sums of limbs by weight, of the sums of all planes: 1, 3 or 5.
template <int PLANES, class T>
inline void weighted(const T* d, T* sums) {
    if constexpr (PLANES == 1) sums[0] = d[0];
    if constexpr (PLANES == 3) sums[0] = d[0], sums[1] = d[2] - d[0] - d[1], sums[2] = d[1];
    if constexpr (PLANES == 6) {
        sums[0] = d[0], sums[1] = d[3] - d[0] - d[1], sums[2] = d[4] - d[0] - d[2] + d[1];
        sums[3] = d[5] - d[1] - d[2], sums[4] = d[2];
    }
}

// Accumulators of a vector of outputs.
template <int MODE, int PLANES> struct Accumulator;

template <int PLANES> struct Accumulator<SINGLE, PLANES> {
    Floats acc;
    void start(const float* out) { std::memcpy(&acc, out, sizeof acc); }
    void add(const Ints* d, float a, const float* w, int) {
        Floats scale;
        std::memcpy(&scale, w, sizeof scale);
        acc = fused(__builtin_convertvector(d[0], Floats), scale * a, acc);
    }
    void finish(float* out) const { std::memcpy(out, &acc, sizeof acc); }
};

template <int PLANES> struct Accumulator<DOUBLE, PLANES> {
    Doubles acc[2];
    void start(const float* out) {
        for (int half = 0; half < 2; ++half) acc[half] = widened(out + half * LANES / 2);
    }
    void add(const Ints* d, double a, const double* w, int limb) {
        constexpr int count = 2 * limbs_of(PLANES) - 1;
        Ints sums[count];
        weighted<PLANES>(d, sums);
        for (int half = 0; half < 2; ++half) {
            Doubles total = doubles(sums[count - 1], half), scale;
            for (int i = count - 2; i >= 0; --i) total = total * double(1 << limb) + doubles(sums[i], half);
            std::memcpy(&scale, w + half * LANES / 2, sizeof scale);
            acc[half] = added(acc[half], total, scale * a);
        }
    }
    void finish(float* out) const {
        for (int half = 0; half < 2; ++half) narrowed(acc[half], out + half * LANES / 2);
    }
};

// Three limbs make sums of 70 bits: they stay apart in three accumulators, 2^(2 limb) from one another.
template <int PLANES> struct Accumulator<EXACT, PLANES> {
    static constexpr int PARTS = PLANES == 6 ? 3 : 1;
    Longs acc[PARTS][2];
    void start(const float*) { std::memset(acc, 0, sizeof acc); }
    void add(const Ints* d, Shift a, const Shift* w, int limb) {
        constexpr int count = 2 * limbs_of(PLANES) - 1;
        Ints sums[count], shift, factor;
        weighted<PLANES>(d, sums);
        const int32_t* pairs = reinterpret_cast<const int32_t*>(w);  // packed: all exponents, then all factors
        std::memcpy(&shift, pairs, sizeof shift), std::memcpy(&factor, pairs + LANES, sizeof factor);
        shift += a.exponent, factor *= a.factor;
        for (int half = 0; half < 2; ++half) {
            const Longs by = longs(shift, half), times = longs(factor, half);
            if constexpr (PLANES == 6) {
                const Longs parts[3] = {longs(sums[0], half) + (longs(sums[1], half) << limb),
                                        longs(sums[2], half) + (longs(sums[3], half) << limb), longs(sums[4], half)};
                for (int i = 0; i < 3; ++i) acc[i][half] += (parts[i] * times) << by;
            } else {
                Longs total = longs(sums[count - 1], half);
                for (int i = count - 2; i >= 0; --i) total = (total << limb) + longs(sums[i], half);
                if (PLANES == 1) acc[0][half] += short_product(total, times) << by;
                else acc[0][half] += (total * times) << by;
            }
        }
    }
    void finish(float* out, int limb, int exponent, const int32_t* lows) const {
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < LANES / 2; ++i) {
                __int128 total = acc[PARTS - 1][half][i];
                for (int part = PARTS - 2; part >= 0; --part) total = total * (1 << 2 * limb) + acc[part][half][i];
                const int lane = half * LANES / 2 + i;
                out[lane] = rounded(total, exponent + lows[lane]);
            }
    }
};

// The bytes of one addend of a panel: corrections, scales, integers.
template <class E, int MODE, int PLANES, int V>
constexpr int64_t addend_bytes(int padded) {
    const int64_t words = (sizeof(E) == 1 ? 1 : 0) + int(sizeof(typename ScaleOf<MODE>::type)) / 4;
    return V * LANES * (4 * words + PLANES * padded * int64_t(sizeof(E)));
}

template <class E, int MODE, int PLANES, int V>
void pack(const Job& job, int64_t column, int columns, int64_t first, int64_t count) {
    typedef typename ScaleOf<MODE>::type Scale;
    constexpr int width = V * LANES;
    const int words = PLANES * job.padded * int(sizeof(E)) / 4;
    uint8_t* panel = static_cast<uint8_t*>(job.panel);
    const int64_t each = addend_bytes<E, MODE, PLANES, V>(job.padded);
    for (int c = 0; c < width; ++c) {
        const int64_t source = (column + (c < columns ? c : 0)) * job.addends + first;
        const uint8_t* row = static_cast<const uint8_t*>(job.w) + source * words * 4;
        for (int64_t g = 0; g < count; ++g) {
            uint8_t* target = panel + g * each;
            if (sizeof(E) == 1) {
                std::memcpy(target + 4 * c, job.corrections + source + g, 4);
                target += 4 * width;
            }
            const Scale* scale = static_cast<const Scale*>(job.w_scales) + source + g;
            if constexpr (MODE == EXACT) {  // by vectors, so that each lies together
                int32_t* at = reinterpret_cast<int32_t*>(target) + c / LANES * 2 * LANES + c % LANES;
                at[0] = scale->exponent, at[LANES] = scale->factor;
            } else {
                std::memcpy(target + sizeof(Scale) * c, scale, sizeof(Scale));
            }
            target += sizeof(Scale) * width + 4 * c;
            const uint8_t* words_of = row + g * words * 4;
            for (int i = 0; i < words; ++i) std::memcpy(target + 4 * width * i, words_of + 4 * i, 4);
        }
    }
}

// ROWS x V vectors of outputs over `count` addends of the panel, from addend `first`.
template <class E, int MODE, int PLANES, int ROWS, int V>
void micro(const Job& job, int64_t row, int64_t column, int columns, int64_t first, int64_t count) {
    typedef typename ScaleOf<MODE>::type Scale;
    constexpr int width = V * LANES;
    const int padded = job.padded, words = padded * int(sizeof(E)) / 4;
    const int64_t stride = job.addends * PLANES * words;  // of a row, in words
    const uint8_t* a = static_cast<const uint8_t*>(job.a) + (row * stride + first * PLANES * words) * 4;
    const Scale* scales = static_cast<const Scale*>(job.a_scales) + row * job.addends + first;
    const uint8_t* panel = static_cast<const uint8_t*>(job.panel);
    Accumulator<MODE, PLANES> acc[ROWS][V];
    float rest[width] = {};
    for (int r = 0; r < ROWS; ++r) {
        if (first) std::memcpy(rest, job.out + (row + r) * job.stride + column, sizeof(float) * size_t(columns));
        for (int v = 0; v < V; ++v) acc[r][v].start(rest + v * LANES);
    }
    for (int64_t g = 0; g < count; ++g) {
        Ints d[ROWS][V][PLANES];
        for (int v = 0; v < V; ++v) {
            Ints begin = {};
            if (sizeof(E) == 1) std::memcpy(&begin, panel + v * sizeof(Ints), sizeof begin);
            for (int r = 0; r < ROWS; ++r)
                for (int p = 0; p < PLANES; ++p) d[r][v][p] = begin;
        }
        if (sizeof(E) == 1) panel += width * 4;
        const Scale* w_scales = reinterpret_cast<const Scale*>(panel);
        panel += width * sizeof(Scale);
        for (int k = 0; k < words; ++k)
#pragma GCC unroll 6
            for (int p = 0; p < PLANES; ++p) {  // inside, so that one sum need not wait for another
                const int at = p * words + k;
                Ints b[V];
                for (int v = 0; v < V; ++v) std::memcpy(&b[v], panel + (at * V + v) * sizeof(Ints), sizeof(Ints));
                for (int r = 0; r < ROWS; ++r) {
                    int32_t x;
                    std::memcpy(&x, a + (r * stride + at) * 4, 4);
                    for (int v = 0; v < V; ++v) d[r][v][p] = dot<E>(d[r][v][p], x, b[v]);
                }
            }
        panel += PLANES * words * width * 4;
        a += PLANES * words * 4;
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < V; ++v)
                acc[r][v].add(d[r][v], scales[r * job.addends + g], w_scales + v * LANES, job.limb);
    }
    for (int r = 0; r < ROWS; ++r) {
        for (int v = 0; v < V; ++v) {
            if constexpr (MODE == EXACT) {
                int32_t lows[LANES] = {};
                for (int i = 0; i < LANES && v * LANES + i < columns; ++i) lows[i] = job.w_lows[column + v * LANES + i];
                acc[r][v].finish(rest + v * LANES, job.limb, job.unit + job.a_lows[row + r], lows);
            } else {
                acc[r][v].finish(rest + v * LANES);
            }
        }
        std::memcpy(job.out + (row + r) * job.stride + column, rest, sizeof(float) * size_t(columns));
    }
}

template <class E, int MODE, int PLANES, int ROWS, int V>
void multiply(const Job& job) {
    constexpr int width = V * LANES;
    const int64_t each = addend_bytes<E, MODE, PLANES, V>(job.padded);
    const int64_t block = MODE == EXACT ? job.addends : PANEL_BYTES / each > 0 ? PANEL_BYTES / each : 1;
    for (int64_t column = 0; column < job.n; column += width) {
        const int columns = int(job.n - column < width ? job.n - column : width);
        for (int64_t first = 0; first < job.addends; first += block) {
            const int64_t count = job.addends - first < block ? job.addends - first : block;
            pack<E, MODE, PLANES, V>(job, column, columns, first, count);
            int64_t row = 0;
            for (; row + ROWS <= job.m; row += ROWS)
                micro<E, MODE, PLANES, ROWS, V>(job, row, column, columns, first, count);
            for (; row < job.m; ++row) micro<E, MODE, PLANES, 1, V>(job, row, column, columns, first, count);
        }
    }
}

template <int MODE>
void with_planes(const Job& job, int bytes, int planes) {
    constexpr bool many = LANES == 16;  // 32 registers, else 16
    if (bytes == 1) return multiply<uint8_t, MODE, 1, MODE == SINGLE ? (many ? 6 : 3) : 2, 2>(job);
    if (planes == 1) return multiply<int16_t, MODE, 1, MODE == SINGLE ? (many ? 6 : 3) : 2, 2>(job);
    if constexpr (MODE != SINGLE) {
        if (planes == 3) return multiply<int16_t, MODE, 3, many ? 4 : 1, 1>(job);
        if (planes == 6) return multiply<int16_t, MODE, 6, many ? 2 : 1, 1>(job);
    }
}

// One output whatever its exponents: fixed point over all that two scales and two elements can be.
constexpr int DIGIT = 32, LOWEST = -352, DIGITS = 23;

float summed(const Job& job, const uint8_t* a, const Shift* sa, int a_low, const uint8_t* w, const Shift* sw,
             int w_low, int bytes, int planes) {
    int64_t digits[DIGITS] = {};
    for (int64_t g = 0; g < job.addends; ++g) {
        int32_t d[6], sums[5];
        for (int p = 0; p < planes; ++p, a += job.padded * bytes, w += job.padded * bytes)
            d[p] = bytes == 1 ? plain_dot<uint8_t, int8_t>(a, w, job.padded) : plain_dot<int16_t, int16_t>(a, w, job.padded);
        if (bytes == 1) d[0] += job.corrections[(sw - static_cast<const Shift*>(job.w_scales)) + g];
        planes == 1 ? weighted<1>(d, sums) : planes == 3 ? weighted<3>(d, sums) : weighted<6>(d, sums);
        __int128 total = 0;
        for (int i = planes == 1 ? 0 : planes == 3 ? 2 : 4; i >= 0; --i) total = total * (1 << job.limb) + sums[i];
        total *= sa[g].factor * sw[g].factor;
        const int place = sa[g].exponent + a_low + sw[g].exponent + w_low + job.unit - LOWEST;
        total *= __int128(1) << place % DIGIT;
        for (int i = 0; i < 4; ++i, total >>= DIGIT)
            digits[place / DIGIT + i] += i < 3 ? int64_t(uint32_t(total)) : int64_t(total);
    }
    return rounded_digits(digits, DIGITS, LOWEST);
}

void multiply_slowly(const Job& job, int bytes, int planes) {
    const int64_t size = job.addends * planes * job.padded * bytes;
    for (int64_t row = 0; row < job.m; ++row)
        for (int64_t column = 0; column < job.n; ++column)
            job.out[row * job.stride + column] = summed(
                job, static_cast<const uint8_t*>(job.a) + row * size,
                static_cast<const Shift*>(job.a_scales) + row * job.addends, job.a_lows[row],
                static_cast<const uint8_t*>(job.w) + column * size,
                static_cast<const Shift*>(job.w_scales) + column * job.addends, job.w_lows[column], bytes, planes);
}

}  // namespace

extern "C" {

// How large 2 u s may be, u an unsigned and s a signed byte of a product; 0: bytes are not multiplied.
int m2xfp_largest_pair() { return PAIR_LIMIT; }

// Whether an fma is one instruction: without, SINGLE is slower than DOUBLE.
int m2xfp_has_fma() { return HAS_FMA; }

int64_t m2xfp_panel_bytes(int mode, int bytes, int planes, int padded, int64_t addends) {
    const int64_t each = 2 * LANES * (4 * 3 + int64_t(planes) * padded * bytes);
    const int64_t block = mode == EXACT ? addends : PANEL_BYTES / each > 0 ? PANEL_BYTES / each : 1;
    return (block + 1) * each + PANEL_BYTES;
}

// Numbers of `Job` in its order, then mode (3: EXACT of any exponents), bytes, planes.
void m2xfp_multiply(const Job* job, int mode, int bytes, int planes) {
    const UsualArithmetic usual;
    if (mode == SINGLE) with_planes<SINGLE>(*job, bytes, planes);
    if (mode == DOUBLE) with_planes<DOUBLE>(*job, bytes, planes);
    if (mode == EXACT) with_planes<EXACT>(*job, bytes, planes);
    if (mode == EXACT + 1) multiply_slowly(*job, bytes, planes);
}

// Rows of packed planes as integers and scales; see `Rows`.
void m2xfp_unpack(const Recipe* recipe, const Rows* rows, int mode) {
    const UsualArithmetic usual;  // scales below 2^-126 are subnormal
    if (mode == SINGLE) unpack<float>(*recipe, *rows);
    if (mode == DOUBLE) unpack<double>(*recipe, *rows);
    if (mode == EXACT) unpack<Shift>(*recipe, *rows);
}

// Values times one number, each rounded once.
void m2xfp_scale(float* x, int64_t count, const float* level) {
    const UsualArithmetic usual;
    for (int64_t i = 0; i < count; ++i) x[i] *= *level;
}
}
