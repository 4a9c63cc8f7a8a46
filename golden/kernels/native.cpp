// The fused CPU path: groups of any format from input type to packed bytes, or back to values.
//
// The same numbers as golden/formats/format.py, from the same definition, by the arithmetic that
// golden/kernels/triton_kernels.py explains and proves; the tests hold each against the plain path. What a format
// is comes at run time, as the numbers of golden/kernels/plan.py. W groups are worked on at a time, transposed: a
// vector holds element i of each of W groups, so maxima and sums over a group are plain vector operations whatever
// its size. Branches on the plan are the same for whole blocks and cost next to nothing beside them.

#include <cfenv>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#else
constexpr int W = 8;
#endif
constexpr int MOST = 256;  // values a group
constexpr int32_t MAGNITUDE = 0x7fffffff, SIGN = int32_t(0x80000000u);
constexpr int32_t INFINITE = 0x7f800000, QUIET_NAN = 0x7fc00000;

typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef double D __attribute__((vector_size(8 * W)));
typedef int64_t L __attribute__((vector_size(8 * W)));
typedef uint16_t H __attribute__((vector_size(2 * W)));

// The caller's thread may flush subnormals (torch.set_flush_denormal) or round otherwise: not in here.
struct UsualArithmetic {
    fenv_t callers;
    UsualArithmetic() { fegetenv(&callers), fesetenv(FE_DFL_ENV); }
    ~UsualArithmetic() { fesetenv(&callers); }
};

inline V all(float x) { return x - V{}; }
inline I all(int32_t x) { return x - I{}; }
inline I least_of(I a, I b) { return a < b ? a : b; }
inline I most_of(I a, I b) { return a > b ? a : b; }
inline V least_of(V a, V b) { return a < b ? a : b; }
inline V most_of(V a, V b) { return a > b ? a : b; }
inline D wide(V x) { return __builtin_convertvector(x, D); }

// a b + c, rounded once.
inline V fused(V a, V b, V c) {
#if defined(__AVX512F__)
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    V r;
    for (int i = 0; i < W; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#endif
}

struct Grid {
    int bits, integer, fixed, mantissa, bias, max_code;
    float largest;
    int specials;
    float least, ratio;
};

enum { NONE, ELEM_EM, SG_EM, PAIR };
enum { QUANTIZE, FAKE, DEQUANTIZE };
enum { POWER, SHORT, SNAP };

struct Plan {
    Grid element, fine, scale;
    int scale_bytes, nan, zero_is_one, emax, up, down, group, subgroup, subgroups, metadata, metadata_bits;
    int away, split, affine, two_level, adaptive, view, significant, lowest;
    bool e8m0, wide_scale;
    float limit;
    int code_bytes, meta_bytes, unit, unit_bytes;  // `unit` codes lie in unit_bytes bytes
};

inline Grid grid_of(const double*& n) {
    Grid g;
    g.bits = int(*n++), g.integer = int(*n++), g.fixed = int(*n++), g.mantissa = int(*n++);
    g.bias = int(*n++), g.max_code = int(*n++), g.largest = float(*n++), g.specials = int(*n++);
    g.least = float(*n++), g.ratio = float(*n++);
    return g;
}

inline Plan plan_of(const double* n) {
    Plan p;
    p.element = grid_of(n), p.fine = grid_of(n), p.scale = grid_of(n);
    for (int* field : {&p.scale_bytes, &p.nan, &p.zero_is_one, &p.emax, &p.up, &p.down, &p.group, &p.subgroup,
                       &p.subgroups, &p.metadata, &p.metadata_bits, &p.away, &p.split, &p.affine, &p.two_level,
                       &p.adaptive, &p.view, &p.significant, &p.lowest})
        *field = int(*n++);
    p.e8m0 = !p.scale.bits, p.wide_scale = p.scale.mantissa == 23;
    p.limit = p.fine.largest > p.element.largest ? p.fine.largest : p.element.largest;
    p.code_bytes = p.group * p.element.bits / 8;
    p.meta_bytes = (p.subgroups * p.metadata_bits + 7) / 8;
    p.unit_bytes = p.element.bits % 3 ? 4 : 3, p.unit = 8 * p.unit_bytes / p.element.bits;
    return p;
}

// Input types as they lie in memory: exact widening to float32, one rounding back (nearest even). `FEW`: 11
// significant bits or fewer. `FLOAT_SUMS`: with those of bfloat16 the weight search is exact in float32.
struct Bf16 {
    static constexpr bool FEW = true, FLOAT_SUMS = true;
    static constexpr int MANTISSA = 7;
    static constexpr float LEAST = 0x1p-126f;
    uint16_t raw;
    float widen() const {
        const uint32_t b = uint32_t(raw) << 16;
        float x;
        std::memcpy(&x, &b, 4);
        return x;
    }
    static V load(const Bf16* p) {
        H h;
        std::memcpy(&h, p, sizeof h);
        return (V)(__builtin_convertvector(h, I) << 16);
    }
    static H round(V x) {
        const I b = (I)x;
        const I up = ((b + 0x7fff + (b >> 16 & 1)) >> 16) & 0xffff;
        return __builtin_convertvector((b & MAGNITUDE) > INFINITE ? all(0x7fc0) : up, H);
    }
    static void store(Bf16* p, V x) {
        const H h = round(x);
        std::memcpy(p, &h, sizeof h);
    }
};
#if !defined(__wasm__)  // which has no such type
struct Fp16 {
    static constexpr bool FEW = true, FLOAT_SUMS = false;
    static constexpr int MANTISSA = 10;
    static constexpr float LEAST = 0x1p-14f;
    _Float16 value;
    float widen() const { return value; }
    static V load(const Fp16* p) {
#if defined(__AVX512F__)
        return (V)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
        return (V)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
        V v;
        for (int i = 0; i < W; ++i) v[i] = p[i].value;
        return v;
#endif
    }
    static void store(Fp16* p, V x) {
        H h;
#if defined(__AVX512F__)
        const __m256i r = _mm512_cvtps_ph((__m512)x, 0);
        std::memcpy(&h, &r, sizeof h);
#elif defined(__F16C__)
        const __m128i r = _mm256_cvtps_ph((__m256)x, 0);
        std::memcpy(&h, &r, sizeof h);
#else
        for (int i = 0; i < W; ++i) {
            const _Float16 narrow = _Float16(x[i]);
            uint16_t raw;
            std::memcpy(&raw, &narrow, 2);
            h[i] = raw;
        }
#endif
        const I b = __builtin_convertvector(h, I);
        h = __builtin_convertvector((b & 0x7fff) > 0x7c00 ? all(0x7e00) : b, H);
        std::memcpy(p, &h, sizeof h);
    }
};
#endif
struct Fp32 {
    static constexpr bool FEW = false, FLOAT_SUMS = false;
    static constexpr int MANTISSA = 23;
    static constexpr float LEAST = 0x1p-126f;
    float value;
    float widen() const { return value; }
    static V load(const Fp32* p) {
        V v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
    static void store(Fp32* p, V x) {
        const V v = (V)(((I)x & MAGNITUDE) > INFINITE ? all(QUIET_NAN) : (I)x);
        std::memcpy(p, &v, sizeof v);
    }
};

// Transpose W vectors in place: swap blocks of W/2, W/4 ... 1.
inline void transpose(V* r) {
#pragma GCC unroll 4
    for (int s = W / 2; s; s /= 2) {
        I low, high;
        for (int c = 0; c < W; ++c) low[c] = c & s ? W + c - s : c, high[c] = c & s ? W + c : c + s;
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
            if (i & s) continue;
            const V a = r[i], b = r[i + s];
#if defined(__clang__)
            for (int c = 0; c < W; ++c) r[i][c] = low[c] < W ? a[low[c]] : b[low[c] - W];
            for (int c = 0; c < W; ++c) r[i + s][c] = high[c] < W ? a[high[c]] : b[high[c] - W];
#else
            r[i] = __builtin_shuffle(a, b, low);
            r[i + s] = __builtin_shuffle(a, b, high);
#endif
        }
    }
}

template <class Type>
inline void load_block(const Type* x, int group, V* out) {
    if (group % W) {
        for (int i = 0; i < group; ++i)
            for (int g = 0; g < W; ++g) out[i][g] = x[g * group + i].widen();
        return;
    }
    for (int c = 0; c < group; c += W) {
        V r[W];
        for (int g = 0; g < W; ++g) r[g] = Type::load(x + g * group + c);
        transpose(r);
        std::memcpy(out + c, r, sizeof r);
    }
}

template <class Type>
inline void store_block(const V* in, int group, int count, Type* out) {
    if (group % W) {
        for (int g = 0; g < count; ++g) {
            V v = {};
            for (int i = 0; i < group; ++i) v[i] = in[i][g];
            Type row[W];
            Type::store(row, v);
            std::memcpy(out + g * group, row, sizeof(Type) * size_t(group));
        }
        return;
    }
    for (int c = 0; c < group; c += W) {
        V r[W];
        std::memcpy(r, in + c, sizeof r);
        transpose(r);
        for (int g = 0; g < count; ++g) Type::store(out + g * group + c, r[g]);
    }
}

inline V power_of(I code) { return (V)(code > 0 ? code << 23 : all(0x00400000)); }

// A number of the grid nearest to y, ties to even, and its code.
struct Rounded { V value; I code; };

inline Rounded nearest(V y, const Grid& g) {
    if (g.fixed) {
        const V pivot = all(g.ratio * g.least), sum = y + pivot;
        return {sum - pivot, (I)sum - (I)pivot};
    }
    const V least = all(g.least);
    const V power = most_of((V)((I)y & INFINITE), least);
    const V pivot = power * g.ratio, sum = y + pivot;
    const I code = ((I)sum - (I)pivot) + (((I)power - (I)least) >> (23 - g.mantissa));
    return {sum - pivot, code};
}

// The numbers of magnitude codes, those above the largest included.
inline V decoded(I code, const Grid& g) {
    if (g.mantissa == 23) return (V)code;
    if (g.fixed) return __builtin_convertvector(code, V) * g.least;
    const float step = g.least / float(1 << g.mantissa);
    V value = (code >> g.mantissa) > 0 ? (V)((code << (23 - g.mantissa)) + ((127 - g.bias) << 23))
                                       : __builtin_convertvector(code, V) * step;
    if (g.specials) {
        const int32_t first = g.specials == 2 ? INFINITE : QUIET_NAN;
        value = (V)(code > g.max_code ? all(first) : (I)value);
        value = (V)(code > g.max_code + 1 ? all(QUIET_NAN) : (I)value);
    }
    return value;
}

// x / (high + low), about, for every threshold exactly on its side: see triton_kernels.py.
struct Divisor { V high, low, inverse; };

inline V snapped(V x, V near, V high, V low, bool two, bool away) {
    const V p = (V)(((I)near + 0x800) & -4096);
    V rest = fused(-p, high, x);
    if (two) rest = fused(-p, low, rest);
    I side = least_of(most_of((I)rest, all(-1)), all(1));
    if (away) side = 2 * side + 1;
    return (V)((I)p + side);
}

inline V quotient(V x, const Divisor& d, float limit, int how, bool two, bool away, bool few) {
    const V largest = all(limit);
    V y = x * d.inverse;
    if (how == SNAP) return snapped(x, least_of(y, largest), d.high, d.low, two, away);
    if (how == SHORT) y = fused(fused(-y, d.high, x), d.inverse, y);
    y = y < largest ? y : largest;  // and so is NaN, of an infinite product
    if (!away) return y;
    return few ? (V)((I)y + 1) : snapped(y, y, all(1.0f), V{}, false, true);
}

// The tensor scale as g 2^k with 2^-22 <= g < 2, and 2^-k and 2^k.
struct Level { float original, unit, down, up; };

inline float scalar_power(int code) {
    const int32_t b = code > 0 ? code << 23 : 0x00400000;
    float x;
    std::memcpy(&x, &b, 4);
    return x;
}

inline Level level_of(const float* unit) {
    if (!unit) return {1, 1, 1, 1};
    int32_t b;
    std::memcpy(&b, unit, 4);
    const int field = b >> 23 & 0xff;
    const float down = scalar_power(254 - field);
    return {*unit, *unit * down, down, scalar_power(field)};
}

inline V lift_of(V scale) {
    return scale < all(8.67e-19f) ? all(0x1p100f) : scale > all(1.15e18f) ? all(0x1p-100f) : all(1.0f);
}

inline Divisor divisor_of(V scale, const Plan& p, const Level& level) {
    Divisor d;
    d.high = p.two_level ? scale * level.unit : scale;
    d.low = p.two_level ? fused(scale, all(level.unit), -d.high) : scale;
    d.inverse = d.high > 0.0f ? 1.0f / d.high : V{};
    return d;
}

struct Scaled { I code; V value; };

inline Scaled fit(V largest, const Plan& p, const Level& level) {
    if (p.e8m0) {
        const I tiny = largest < all(0x1p-126f);
        const V normal = tiny ? largest * 16777216.0f : largest;
        const I significand = ((I)normal & 0x7fffff) | 0x800000;
        I code = ((I)normal >> 23) - (tiny & 24) - p.emax;
        code += -(significand > p.up) + (significand < p.down);
        code = least_of(most_of(code, I{}), all(254)) & (largest > 0.0f);
        return {code, power_of(code)};
    }
    Scaled s;
    if (p.wide_scale) {
        D q = wide(largest) / double(p.element.largest);
        if (p.away) q = (D)((L)q + 1);
        s.value = __builtin_convertvector(q, V);
        s.code = (I)s.value;
    } else {
        Divisor d;
        d.high = all(level.unit * p.element.largest);
        d.low = fused(all(level.unit), all(p.element.largest), -d.high);
        d.inverse = 1.0f / d.high;
        const V y = quotient(largest, d, p.scale.largest, SNAP, p.two_level, p.away, false);
        const Rounded r = nearest(y, p.scale);
        s.value = r.value, s.code = r.code;
    }
    if (p.zero_is_one) {
        const I zero = s.code == 0;
        s.value = zero ? all(1.0f) : s.value;
        s.code = zero ? all(p.scale.bias << p.scale.mantissa) : s.code;
    }
    return s;
}

struct Block {
    V x[MOST], y[MOST], value[MOST];  // value: refined, in units of the scale; then whole
    I code[MOST], field[MOST];
    Scaled first, second;
    I good;
};

// Elem-EM: which lanes are the first of the largest codes of a subgroup, the code, the lane.
inline void top_of(const I* code, int count, I& top, I& lane) {
    top = code[0], lane = I{};
    for (int i = 1; i < count; ++i) {
        const I larger = code[i] > top;
        top = larger ? code[i] : top;
        lane = larger ? all(i) : lane;
    }
}

inline V convert(V x, V) { return x; }
inline D convert(V x, D) { return wide(x); }
inline I mask(I x, V) { return x; }
inline L mask(I x, D) { return __builtin_convertvector(x, L); }

// Sg-EM: the scale and the fields of least squared error, that is, of the largest gain
// sum q (2 w - q). y is |x| over the fitted scale for E8M0, else |x| in units of the tensor scale.
template <class Sum, bool FEW>
void search(const Plan& p, const Level& level, Block& b) {
    const int how = FEW && !p.two_level ? POWER : SNAP;
    const I fitted = b.first.code;
    V chosen = {};
    I code = fitted;
    Sum best = {};
    I fields[MOST];
    bool first = true;
    for (int j = p.adaptive ? 0 : 1; j < (p.adaptive ? 3 : 2); ++j) {
        const I candidate = fitted + (j - 1);
        V base;
        I allowed;
        if (p.e8m0) {
            base = all(j == 0 ? 0.5f : j == 1 ? 1.0f : 2.0f);
            allowed = (candidate >= 0) & (candidate <= 254);
        } else {
            allowed = (fitted > 0) & (candidate > 0) & (candidate <= p.scale.max_code);
            base = (V)((I)decoded(most_of(candidate, I{}), p.scale) & allowed);
            allowed |= (candidate == 0) & (fitted == 0);
        }
        Divisor d[4];
        V scale[4];
        for (int k = 0; k < 4; ++k) scale[k] = base * (1 + 0.25f * float(k)), d[k] = divisor_of(scale[k], p, level);
        Sum total = {};
        for (int s = 0; s < p.subgroups; ++s) {
            const V* y = b.y + s * p.subgroup;
            Sum least = {};
            I field = {};
            for (int k = 0; k < 4; ++k) {
                Sum gain = {};
                for (int i = 0; i < p.subgroup; ++i) {
                    V w = y[i];
                    if (p.view) {
                        const V fixed = w * float(1 << (p.view / 2)) * float(1 << (p.view - p.view / 2));
                        // Beyond 2^23 everything is whole; the largest numbers are below 2^31 there.
                        const V whole = fixed < 8388608.0f ? __builtin_convertvector(__builtin_convertvector(fixed, I), V) : fixed;
                        const I odd = __builtin_convertvector(whole < 8388608.0f ? whole : V{}, I) | 1;
                        w = whole == fixed ? w : __builtin_convertvector(odd, V) / float(1 << (p.view / 2)) / float(1 << (p.view - p.view / 2));
                    }
                    const V near = quotient(y[i], d[k], p.element.largest, how, p.two_level, false, FEW);
                    const V m = nearest(near, p.element).value;
                    if (sizeof(Sum) == sizeof(V)) {
                        gain += convert(m * (w - m * (0.5f * d[k].high)), Sum{});
                    } else {
                        const Sum q = convert(m * scale[k], Sum{});
                        const Sum full = p.two_level ? q * level.unit : q;
                        gain += q * (2 * convert(w, Sum{}) - full);
                    }
                }
                if (sizeof(Sum) == sizeof(V)) gain *= convert(2.0f * d[k].high, Sum{});
                if (k == 0) {
                    least = gain;
                } else {
                    const auto won = gain > least;
                    least = won ? gain : least;
                    field = __builtin_convertvector(won, I) ? all(k) : field;
                }
            }
            total += least;
            fields[s] = field;
        }
        const auto legal = mask(allowed, Sum{});
        const auto won = first ? legal : legal & (total > best);
        const I narrow = __builtin_convertvector(won, I);
        best = won ? total : (first ? Sum{} - 1 : best);
        chosen = narrow ? base : chosen;
        code = narrow ? candidate : code;
        for (int s = 0; s < p.subgroups; ++s) b.field[s] = narrow ? fields[s] : b.field[s];
        first = false;
    }
    b.first.code = code;
    b.first.value = p.e8m0 ? power_of(code) : decoded(code, p.scale);
    b.second = b.first;
    for (int s = 0; s < p.subgroups; ++s) {
        const V multiplier = 1.0f + 0.25f * __builtin_convertvector(b.field[s], V);
        const Divisor d = divisor_of(chosen * multiplier, p, level);
        for (int i = s * p.subgroup; i < (s + 1) * p.subgroup; ++i) {
            const V y = quotient(b.y[i], d, p.element.largest, FEW && !p.two_level ? SHORT : SNAP, p.two_level, p.away, FEW);
            const Rounded r = nearest(y, p.element);
            b.code[i] = r.code;
            b.value[i] = r.value * multiplier;
        }
    }
}

// Codes, scales, fields and refined values of the block's x, all without signs.
template <class Type>
void encode(const Plan& p, const Level& level, Block& b) {
    constexpr bool FEW = Type::FEW;
    const int group = p.group;
    I largest = {}, other = {};
    if (p.split) {
        for (int i = 0; i < group; ++i) {
            largest = most_of((I)b.x[i], largest);
            other = most_of((I)b.x[i] ^ SIGN, other);
        }
    } else {
        for (int i = 0; i < group; ++i) largest = most_of((I)b.x[i] & MAGNITUDE, largest);
    }
    b.good = most_of(largest, other) < INFINITE;
    b.first = b.second = fit((V)(largest & b.good) * level.down, p, level);
    if (p.split) b.second = fit((V)(other & b.good), p, level);
    int how = POWER;
    Divisor d[2];
    V lift[2] = {all(level.down), all(level.down)};
    for (int k = 0; k < 2; ++k) {
        const Scaled& s = k ? b.second : b.first;
        if (p.e8m0) {
            d[k] = {all(1.0f), V{}, power_of(254 - s.code)};
        } else {
            if (p.wide_scale) lift[k] = lift_of(s.value);
            d[k] = divisor_of(p.wide_scale ? s.value * lift[k] : s.value, p, level);
            how = FEW && !p.two_level && !p.wide_scale ? SHORT : SNAP;
        }
    }
    const bool lifted = p.two_level || p.wide_scale, searching = p.metadata == SG_EM;
    for (int i = 0; i < group; ++i) {
        V m = (V)((I)b.x[i] & (MAGNITUDE & b.good));
        if (p.split) {
            const I positive = b.x[i] > 0.0f;
            const Divisor chosen = {positive ? d[0].high : d[1].high, V{}, positive ? d[0].inverse : d[1].inverse};
            if (lifted) m *= positive ? lift[0] : lift[1];
            b.y[i] = quotient(m, chosen, p.limit, how, false, p.away, FEW);
        } else {
            if (lifted) m *= lift[0];
            // Far beyond the largest scale only the order counts, and an infinite gain has none.
            if (searching && lifted) m = least_of(m, all(0x1p100f));
            b.y[i] = searching ? (p.e8m0 ? m * d[0].inverse : m) : quotient(m, d[0], p.limit, how, p.two_level, p.away, FEW);
        }
    }
    if (searching) {
        const bool below_8 = p.e8m0 && !p.down && !p.view && group <= 32;
        if (Type::FLOAT_SUMS && below_8) search<V, FEW>(p, level, b);
        else search<D, FEW>(p, level, b);
        return;
    }
    if (p.metadata == PAIR) {
        for (int s = 0; s < p.subgroups; ++s) {
            V most = {};
            for (int i = s * p.subgroup; i < (s + 1) * p.subgroup; ++i) most = most_of(b.y[i], most);
            const I small = most < 1.0f;
            const V twice = small ? all(2.0f) : all(1.0f), half = small ? all(0.5f) : all(1.0f);
            for (int i = s * p.subgroup; i < (s + 1) * p.subgroup; ++i) {
                const Rounded r = nearest(least_of(b.y[i] * twice, all(p.element.largest)), p.element);
                b.code[i] = r.code;
                b.value[i] = r.value * half;
            }
            b.field[s] = small & 1;
        }
        return;
    }
    const V most = all(p.element.largest);
    for (int i = 0; i < group; ++i) {
        const Rounded r = nearest(p.metadata ? least_of(b.y[i], most) : b.y[i], p.element);
        b.code[i] = r.code;
        b.value[i] = r.value;
    }
    if (p.metadata != ELEM_EM) return;
    for (int s = 0; s < p.subgroups; ++s) {
        const int start = s * p.subgroup;
        I top, lane;
        top_of(b.code + start, p.subgroup, top, lane);
        V y = {};
        for (int i = 0; i < p.subgroup; ++i) y = lane == i ? b.y[start + i] : y;
        const I fine = nearest(y, p.fine).code;
        b.field[s] = least_of(most_of(fine + 1 - 4 * top, I{}), all(3));
        const V refined = decoded(most_of(4 * top + b.field[s] - 1, I{}), p.fine);
        for (int i = 0; i < p.subgroup; ++i) b.value[start + i] = lane == i ? refined : b.value[start + i];
    }
}

// refined * scale * tensor scale, rounded once to Type, as float32.
template <class Type>
inline V whole(V refined, V scale, V lift, V drop, const Plan& p, const Level& level) {
    if (Type::MANTISSA == 23 || !(p.two_level || p.wide_scale)) {
        const V value = refined * scale;
        return p.two_level ? value * level.original : value;
    }
    const V near = p.two_level ? refined * scale : refined;
    const V factor = p.two_level ? all(level.unit) : scale * lift;
    const V about = near * factor;
    const V power = most_of((V)((I)about & INFINITE), Type::LEAST * lift);
    const V pivot = power * (1.5f * float(1 << (23 - Type::MANTISSA)));
    const V value = (fused(near, factor, pivot) - pivot) * drop;
    return about < all(__builtin_inff()) ? value : about;
}

// Turn refined values into values with their signs; NaN in groups that are not good.
template <class Type>
void finish(const Plan& p, const Level& level, Block& b, const I* negative) {
    V lift[2] = {all(level.down), all(level.down)}, drop[2] = {all(level.up), all(level.up)};
    if (p.wide_scale) {
        for (int k = 0; k < 2; ++k) {
            lift[k] = lift_of(k ? b.second.value : b.first.value);
            drop[k] = lift[k] > 1.0f ? all(0x1p-100f) : lift[k] < 1.0f ? all(0x1p100f) : lift[k];
        }
    }
    for (int i = 0; i < p.group; ++i) {
        const I other = p.split ? negative[i] : I{};
        const V scale = p.split ? (other ? b.second.value : b.first.value) : b.first.value;
        const V up = p.split ? (other ? lift[1] : lift[0]) : lift[0], back = p.split ? (other ? drop[1] : drop[0]) : drop[0];
        V v = whole<Type>(b.value[i], scale, up, back, p, level);
        v = (V)((I)v | (negative[i] & SIGN));
        b.value[i] = (V)(b.good ? (I)v : all(QUIET_NAN));
    }
}

inline void store_fields(const I* fields, int count, int bits, int each, int bytes, int groups, int stride, uint8_t* out) {
    for (int u = 0; u * each < count; ++u) {
        I word = {};
        for (int i = 0; i < each && u * each + i < count; ++i) word |= fields[u * each + i] << (bits * i);
        int32_t row[W];
        std::memcpy(row, &word, sizeof row);
        uint8_t* start = out + u * bytes;
        if (bytes == 4)
            for (int g = 0; g < groups; ++g) std::memcpy(start + g * stride, row + g, 4);
        else if (bytes == 1)
            for (int g = 0; g < groups; ++g) start[g * stride] = uint8_t(row[g]);
        else
            for (int g = 0; g < groups; ++g) std::memcpy(start + g * stride, row + g, 3);
    }
}

inline void load_fields(const uint8_t* in, int count, int bits, int each, int bytes, int groups, int stride, I* fields) {
    for (int u = 0; u * each < count; ++u) {
        int32_t row[W] = {};
        for (int g = 0; g < groups; ++g) std::memcpy(row + g, in + g * stride + u * bytes, size_t(bytes));
        I word;
        std::memcpy(&word, row, sizeof word);
        for (int i = 0; i < each && u * each + i < count; ++i) fields[u * each + i] = word >> (bits * i) & ((1 << bits) - 1);
    }
}

inline void store_scales(const Plan& p, const Block& b, int groups, uint8_t* out) {
    const int each = p.split ? 2 : 1;
    for (int g = 0; g < groups; ++g)
        for (int k = 0; k < each; ++k) {
            const int32_t code = b.good[g] ? (k ? b.second.code[g] : b.first.code[g]) : p.nan;
            std::memcpy(out + (g * each + k) * p.scale_bytes, &code, size_t(p.scale_bytes));
        }
}

inline V scale_value(I code, const Plan& p) {
    if (p.e8m0) return (V)(code == 255 ? all(QUIET_NAN) : (I)power_of(code));
    const V value = decoded(code & (p.wide_scale ? MAGNITUDE : 127), p.scale);
    return (V)(code == p.nan ? all(QUIET_NAN) : (I)value);
}

inline void load_scales(const Plan& p, int groups, const uint8_t* in, Block& b) {
    const int each = p.split ? 2 : 1;
    I code[2] = {};
    for (int g = 0; g < groups; ++g)
        for (int k = 0; k < each; ++k) {
            int32_t c = 0;
            std::memcpy(&c, in + (g * each + k) * p.scale_bytes, size_t(p.scale_bytes));
            code[k][g] = c;
        }
    b.first = {code[0], scale_value(code[0], p)};
    b.second = p.split ? Scaled{code[1], scale_value(code[1], p)} : b.first;
    b.good = all(-1);
}

struct Task {
    Plan plan;
    Level level;
    int64_t groups;
    const void* x;
    uint8_t *codes, *scales, *meta;
    void* values;
};

template <class Type, int WHAT>
void step(const Task& task, int64_t start, int count, Block& b) {
    const Plan& p = task.plan;
    const int scale_stride = p.scale_bytes * (p.split ? 2 : 1);
    uint8_t* codes = task.codes + start * p.code_bytes;
    uint8_t* scales = task.scales + start * scale_stride;
    uint8_t* meta = p.metadata ? task.meta + start * p.meta_bytes : nullptr;
    const int fields_a_byte = p.metadata ? 8 / p.metadata_bits : 1;
    I negative[MOST];
    if (WHAT == DEQUANTIZE) {
        load_fields(codes, p.group, p.element.bits, p.unit, p.unit_bytes, count, p.code_bytes, b.code);
        load_scales(p, count, scales, b);
        const int half = 1 << (p.element.bits - 1);
        for (int i = 0; i < p.group; ++i) {
            const I code = b.code[i];
            if (p.element.integer) {
                const I steps = (code ^ half) - half;
                negative[i] = steps < 0;
                b.value[i] = __builtin_convertvector(steps < 0 ? -steps : steps, V) * p.element.least;
            } else {
                negative[i] = (code & half) != 0;
                b.code[i] = code & (half - 1);
                b.value[i] = decoded(b.code[i], p.element);
            }
        }
        if (p.metadata) load_fields(meta, p.subgroups, p.metadata_bits, fields_a_byte, 1, count, p.meta_bytes, b.field);
        for (int s = 0; p.metadata && s < p.subgroups; ++s) {
            const int first = s * p.subgroup;
            if (p.metadata == ELEM_EM) {
                I top, lane;
                top_of(b.code + first, p.subgroup, top, lane);
                const V refined = decoded(most_of(4 * top + b.field[s] - 1, I{}), p.fine);
                for (int i = 0; i < p.subgroup; ++i) b.value[first + i] = lane == i ? refined : b.value[first + i];
            } else {
                const V f = __builtin_convertvector(b.field[s], V);
                const V factor = p.metadata == SG_EM ? 1.0f + 0.25f * f : 1.0f - 0.5f * f;
                for (int i = 0; i < p.subgroup; ++i) b.value[first + i] *= factor;
            }
        }
    } else {
        const Type* x = static_cast<const Type*>(task.x) + start * p.group;
        if (count < W) {
            Type padded[W * MOST];
            std::memset((void*)padded, 0, sizeof(Type) * size_t(W * p.group));
            std::memcpy((void*)padded, x, sizeof(Type) * size_t(count * p.group));
            load_block(padded, p.group, b.x);
        } else {
            load_block(x, p.group, b.x);
        }
        encode<Type>(p, task.level, b);
    }
    if (WHAT == QUANTIZE) {
        const int half = 1 << (p.element.bits - 1);
        for (int i = 0; i < p.group; ++i) {
            const I sign = (I)b.x[i] >> 31;
            const I code = p.element.integer ? ((b.code[i] ^ sign) - sign) & (2 * half - 1) : b.code[i] | (sign & half);
            b.code[i] = code & b.good;
        }
        for (int s = 0; p.metadata && s < p.subgroups; ++s) b.field[s] &= b.good;
        store_fields(b.code, p.group, p.element.bits, p.unit, p.unit_bytes, count, p.code_bytes, codes);
        store_scales(p, b, count, scales);
        if (p.metadata) store_fields(b.field, p.subgroups, p.metadata_bits, fields_a_byte, 1, count, p.meta_bytes, meta);
        return;
    }
    if (WHAT == FAKE)
        for (int i = 0; i < p.group; ++i) {
            negative[i] = (I)b.x[i] >> 31;
            if (p.element.integer) negative[i] &= b.code[i] != 0;  // an integer has one zero
        }
    finish<Type>(p, task.level, b, negative);
    store_block(b.value, p.group, count, static_cast<Type*>(task.values) + start * p.group);
}

template <class Type, int WHAT>
void loop(const Task& task) {
    static thread_local Block block;
    for (int64_t g = 0; g < task.groups; g += W)
        step<Type, WHAT>(task, g, int(task.groups - g < W ? task.groups - g : W), block);
}

// The format with a zero point, in float64 as the plain path has it, operation by operation; here a vector holds
// neighbouring values of a group.
typedef double E __attribute__((vector_size(4 * W)));
typedef int64_t M __attribute__((vector_size(4 * W)));
typedef float F __attribute__((vector_size(2 * W)));
typedef int32_t N __attribute__((vector_size(2 * W)));
constexpr int STEP = W / 2;

inline E wide(F x) { return __builtin_convertvector(x, E); }
inline E down(E x) {
#if defined(__AVX512F__)
    return (E)_mm512_roundscale_pd((__m512d)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#elif defined(__AVX__)
    return (E)_mm256_floor_pd((__m256d)x);
#else
    for (int i = 0; i < STEP; ++i) x[i] = __builtin_floor(x[i]);
    return x;
#endif
}

inline E half_away(E x) {
    const E below = down(x), part = x - below;  // exact: x is a multiple of 1/4, or whole
    return below + ((part > 0.5) | ((part == 0.5) & (x > 0.0)) ? E{} + 1.0 : E{});
}

// x / s as floor + {0, 1/4, 1/2, 3/4}: exact, below, at or above the half.
inline E sided(E x, double s) {
    E whole = down(x / s);
    E rest = x - whole * s;
    whole = whole + (rest >= s ? E{} + 1.0 : E{}) - (rest < 0.0 ? E{} + 1.0 : E{});
    rest = x - whole * s;
    const E twice = rest + rest;
    return whole + (twice > s ? E{} + 0.75 : twice == s ? E{} + 0.5 : rest > 0.0 ? E{} + 0.25 : E{});
}

inline double add_to_odd(double a, double b) {
    const double total = a + b, shadow = total - a;
    const double error = (a - (total - shadow)) + (b - shadow);
    int64_t bits;
    std::memcpy(&bits, &total, 8);
    if (error != 0 && !(bits & 1) && total != 0) bits += (error > 0) == (total > 0) ? 1 : -1;
    double odd;
    std::memcpy(&odd, &bits, 8);
    return odd;
}

// float64 to float32 so that one more rounding, to 16 bits, rounds the float64 number once.
inline F narrow(E x, bool last) {
    const F single = __builtin_convertvector(x, F);
    if (last) return single;
    const E error = x - wide(single);
    const N bits = (N)single;
    const N finite = (bits & MAGNITUDE) < INFINITE;
    const N inexact = __builtin_convertvector(error != 0.0, N) & finite & ((bits & 1) == 0);
    const N outward = __builtin_convertvector(error > 0.0, N) == (single > 0.0f);
    const N odd = single == 0.0f ? (__builtin_convertvector(error < 0.0, N) & SIGN) | 1 : bits + (outward ? N{} + 1 : N{} - 1);
    return (F)(inexact ? odd : bits);
}

struct Range { float low, high; bool good; };

inline Range range_of(const float* x, int group) {
    F low, high;
    N largest = {};
    std::memcpy(&low, x, sizeof low);
    high = low;
    for (int i = 0; i < group; i += STEP) {
        F v;
        std::memcpy(&v, x + i, sizeof v);
        const N size = (N)v & MAGNITUDE;
        largest = size > largest ? size : largest;
        low = v < low ? v : low, high = v > high ? v : high;
    }
    Range r{low[0], high[0], true};
    for (int i = 0; i < STEP; ++i) {
        r.low = low[i] < r.low ? low[i] : r.low, r.high = high[i] > r.high ? high[i] : r.high;
        r.good &= largest[i] < INFINITE;
    }
    return r.good ? r : Range{0, 0, false};
}

template <class Type>
void store_row(const float* value, int group, Type* out) {
    for (int c = 0; c < group; c += W) {
        V v = {};
        const int count = group - c < W ? group - c : W;
        std::memcpy(&v, value + c, sizeof(float) * size_t(count));
        Type row[W];
        Type::store(row, v);
        std::memcpy((void*)(out + c), row, sizeof(Type) * size_t(count));
    }
}

template <class Type, int WHAT>
void affine(const Task& task) {
    const Plan& p = task.plan;
    const int group = p.group, half = 1 << (p.element.bits - 1);
    float x[MOST], value[MOST];
    int32_t code[MOST];
    for (int64_t g = 0; g < task.groups; ++g) {
        uint8_t* codes = task.codes + g * p.code_bytes;
        uint8_t* scales = task.scales + g * 12;
        float step = 0;
        double offset = 0;
        bool good = true;
        if (WHAT == DEQUANTIZE) {
            std::memcpy(&step, scales, 4);
            std::memcpy(&offset, scales + 4, 8);
            for (int i = 0; i < group / 2; ++i) code[2 * i] = codes[i] & 15, code[2 * i + 1] = codes[i] >> 4;
        } else {
            const Type* source = static_cast<const Type*>(task.x) + g * group;
            for (int i = 0; i < group; ++i) x[i] = source[i].widen();
            const Range r = range_of(x, group);
            good = r.good;
            if (!good) std::memset(x, 0, sizeof(float) * size_t(group));
            step = float(add_to_odd(r.high, -double(r.low)) / 15);
            if (step == 0) step = 1;
            offset = half_away(sided(E{} + double(r.low), step))[0];
        }
        const double s = good ? double(step) : __builtin_nan("");
        for (int i = 0; i < group; i += STEP) {
            E q;
            N whole;
            if (WHAT == DEQUANTIZE) {
                std::memcpy(&whole, code + i, sizeof whole);
                q = __builtin_convertvector((whole ^ half) - half, E);
            } else {
                F v;
                std::memcpy(&v, x + i, sizeof v);
                q = half_away(sided(wide(v), step) - offset - double(half));
                q = q < -half ? E{} - half : q;
                q = q > half - 1 ? E{} + (half - 1) : q;
            }
            if (WHAT == QUANTIZE) {
                whole = __builtin_convertvector(q, N) & (good ? 15 : 0);
                std::memcpy(code + i, &whole, sizeof whole);
            } else {
                const F v = narrow((q + double(half) + offset) * s, Type::MANTISSA == 23);
                std::memcpy(value + i, &v, sizeof v);
            }
        }
        if (WHAT == QUANTIZE) {
            for (int i = 0; i < group / 2; ++i) codes[i] = uint8_t(code[2 * i] | code[2 * i + 1] << 4);
            const int32_t nan = QUIET_NAN;
            if (!good) offset = 0;
            std::memcpy(scales, good ? (const void*)&step : &nan, 4);
            std::memcpy(scales + 4, &offset, 8);
        } else {
            store_row(value, group, static_cast<Type*>(task.values) + g * group);
        }
    }
}

template <class Type>
void with_type(int what, const Task& task) {
    if (task.plan.affine) {
        if (what == QUANTIZE) affine<Type, QUANTIZE>(task);
        if (what == FAKE) affine<Type, FAKE>(task);
        if (what == DEQUANTIZE) affine<Type, DEQUANTIZE>(task);
    } else {
        if (what == QUANTIZE) loop<Type, QUANTIZE>(task);
        if (what == FAKE) loop<Type, FAKE>(task);
        if (what == DEQUANTIZE) loop<Type, DEQUANTIZE>(task);
    }
}

template <class Type>
int32_t largest_of(const Type* x, int64_t count) {
    int32_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float value = x[i].widen();
        int32_t bits;
        std::memcpy(&bits, &value, 4);
        bits &= MAGNITUDE;
        bits = bits < INFINITE ? bits : 0;
        most = bits > most ? bits : most;
    }
    return most;
}

}  // namespace

// plan: the numbers of plan.py. what: 0 quantize, 1 fake-quantize, 2 dequantize. type, of x and values: 0 bfloat16,
// 1 float16, 2 float32. unit: the tensor scale or null. Pointers that `what` does not use may be null.
extern "C" void m2xfp_run(const double* plan, int what, int type, int64_t groups, const float* unit, const void* x,
                          uint8_t* codes, uint8_t* scales, uint8_t* meta, void* values) {
    const UsualArithmetic usual;
    const Task task{plan_of(plan), level_of(unit), groups, x, codes, scales, meta, values};
    if (type == 0) with_type<Bf16>(what, task);
#if !defined(__wasm__)
    if (type == 1) with_type<Fp16>(what, task);
#endif
    if (type == 2) with_type<Fp32>(what, task);
}

// The bits of the largest finite magnitude, as float32.
extern "C" int32_t m2xfp_largest(int type, int64_t count, const void* x) {
    const UsualArithmetic usual;
    if (type == 0) return largest_of(static_cast<const Bf16*>(x), count);
#if !defined(__wasm__)
    if (type == 1) return largest_of(static_cast<const Fp16*>(x), count);
#endif
    return largest_of(static_cast<const Fp32*>(x), count);
}
