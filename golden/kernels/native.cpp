// The fused CPU path: groups of 32 from input type to packed bytes, or back to values.
//
// The same numbers as golden/formats/format.py, from the same definition, in float32 and integers; the tests
// hold one against the other. Four groups are worked on at a time, transposed: vector element s is
// subgroup s, so that maxima and sums over a subgroup are plain vector operations. The vectors are
// the compiler's own extension (GCC, Clang) and become what the processor has.

#include <cstdint>
#include <cstring>

namespace {

constexpr int GROUP = 32, LANES = 8, SUBGROUPS = GROUP / LANES;
constexpr int BATCH = 4, WIDTH = BATCH * SUBGROUPS;
constexpr int32_t MAGNITUDE = 0x7fffffff, INFINITE = 0x7f800000, QUIET_NAN = 0x7fc00000;
constexpr uint8_t NAN_SCALE = 0xff;

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef double Doubles __attribute__((vector_size(8 * WIDTH)));

enum Metadata { NONE = 0, ELEM_EM = 1, SG_EM = 2 };

inline int32_t bits_of(float x) { int32_t b; std::memcpy(&b, &x, 4); return b; }
inline float float_of(int32_t b) { float x; std::memcpy(&x, &b, 4); return x; }

// Input types as they lie in memory: exact widening to float32, one rounding back (nearest even);
// ERROR is the type in which sums of the weight search are exact.
struct Bf16 {
    typedef Floats Error;
    uint16_t raw;
    float widen() const { return float_of(int32_t(uint32_t(raw) << 16)); }
    static Bf16 round(float x) {
        const uint32_t b = uint32_t(bits_of(x));
        const uint32_t up = b + 0x7fff + (b >> 16 & 1);
        return {uint16_t((b & MAGNITUDE) > INFINITE ? 0x7fc0 : up >> 16)};
    }
};
struct Fp16 {
    typedef Doubles Error;
    _Float16 value;
    float widen() const { return value; }
    static Fp16 round(float x) { return {_Float16(x)}; }
};
struct Fp32 {
    typedef Doubles Error;
    float value;
    float widen() const { return value; }
    static Fp32 round(float x) { return {x}; }
};

// Four groups: code[i][s] is lane i of subgroup s, sign on bit 3; subgroup s belongs to group s / 4.
struct Batch {
    Ints code[LANES];
    Ints field;
    uint8_t scale[BATCH];
};

// Spread one value a group over its subgroups.
template <class T, class Vector>
inline Vector spread(const T* value) {
    Vector v;
    for (int s = 0; s < WIDTH; ++s) v[s] = value[s / SUBGROUPS];
    return v;
}

// E2M1 code of y / m: nearest, ties to even; a tie goes up where the code above is even.
inline Ints e2m1(Floats y, Floats m) {
    return -((y > 0.25f * m) + (y >= 0.75f * m) + (y > 1.25f * m) + (y >= 1.75f * m) +
             (y > 2.5f * m) + (y >= 3.5f * m) + (y > 5.0f * m));
}

// Value of an E2M1 magnitude code, by arithmetic: 0 1 2 3 4 6 8 12 halves.
inline Floats e2m1_value(Ints code) {
    const Ints halves = code - (code > 4) - (code > 5) - 3 * (code > 6);
    return 0.5f * __builtin_convertvector(halves, Floats);
}

// E2M3 code of y < 8: nearest, ties to even, saturating.
inline Ints e2m3(Floats y) {
    const Ints b = (Ints)y;
    const Ints normal = ((b + 0x7ffff + (b >> 20 & 1)) >> 20) - 1008;
    const Floats shifted = 8.0f * y + 8388608.0f;  // rounds 8y to an integer in the last bits
    const Ints small = (Ints)shifted - bits_of(8388608.0f);
    const Ints code = y < 1.0f ? small : normal;
    return code < 31 ? code : 31;
}

inline Floats e2m3_value(Ints code) {
    const Floats small = 0.125f * __builtin_convertvector(code, Floats);
    return code < 8 ? small : (Floats)((code + 1008) << 20);
}

// Elem-EM: 8 * largest magnitude code + 7 - its first index, for every subgroup.
inline Ints top_key(const Ints* code) {
    Ints key = {};
    for (int i = 0; i < LANES; ++i) {
        const Ints candidate = (code[i] & 7) << 3 | (LANES - 1 - i);
        key = candidate > key ? candidate : key;
    }
    return key;
}

inline Ints refine(const Floats* y, const Ints* code) {
    const Ints key = top_key(code);
    Floats top = {};
    for (int i = 0; i < LANES; ++i) top = (key & 7) == LANES - 1 - i ? y[i] : top;
    const Ints fine = e2m3(top) + 1 - 4 * (key >> 3);
    const Ints floored = fine > 0 ? fine : 0;
    return floored < 3 ? floored : 3;
}

inline Floats convert(Floats x, Floats) { return x; }
inline Doubles convert(Floats x, Doubles) { return __builtin_convertvector(x, Doubles); }

// Sum q (q - 2y) for one multiplier: the squared error of a subgroup less sum y^2.
//
// q is a multiple of 2^-4 and counts only for y > 1/8, so every term is a multiple of 2^-13 with
// bfloat16 and at most 64: eight of them have 22 bits and float is exact. The other types have at most
// 11 or 24 bits and lie within 44: double is exact.
template <class Error>
inline Error error_of(const Floats* y, float multiplier) {
    const Floats m = multiplier - Floats{};
    Error sum = {};
    for (int i = 0; i < LANES; ++i) {
        const Error q = convert(m * e2m1_value(e2m1(y[i], m)), Error{});
        sum += q * (q - 2 * convert(y[i], Error{}));
    }
    return sum;
}

// Sg-EM: the multiplier indices and the exponent biases (-1, 0, 1) of least squared error.
template <class Error>
inline Ints search(const Floats* y, const int* fitted, bool adaptive, int* bias) {
    double least[BATCH];
    Ints field = {};
    const int last = adaptive ? 1 : 0;
    for (int b = -last; b <= last; ++b) {
        const float base = b < 0 ? 0.5f : b ? 2.0f : 1.0f;
        Error best = error_of<Error>(y, base);
        Ints fields = {};
        for (int k = 1; k < 4; ++k) {
            const Error error = error_of<Error>(y, base * (1 + 0.25f * float(k)));
            const auto won = error < best;
            best = won ? error : best;
            fields = __builtin_convertvector(won, Ints) ? k - Ints{} : fields;
        }
        for (int g = 0; g < BATCH; ++g) {
            double total = 0;
            for (int s = g * SUBGROUPS; s < (g + 1) * SUBGROUPS; ++s) total += double(best[s]);
            const bool allowed = fitted[g] + b >= 0;
            const bool first = b == -last || (b == 0 && fitted[g] == 0);
            if (!allowed || !(first || total < least[g])) continue;
            least[g] = total;
            bias[g] = b;
            for (int s = g * SUBGROUPS; s < (g + 1) * SUBGROUPS; ++s) field[s] = fields[s];
        }
    }
    return field;
}

template <class Type, int METADATA>
inline void encode(const Type* x, bool adaptive, Batch& batch) {
    Ints magnitude[LANES], sign[LANES], largest = {};
    int32_t bits[LANES][WIDTH];
    for (int s = 0; s < WIDTH; ++s)
        for (int i = 0; i < LANES; ++i) bits[i][s] = bits_of(x[s * LANES + i].widen());
    for (int i = 0; i < LANES; ++i) {
        Ints b;
        std::memcpy(&b, bits[i], sizeof b);
        magnitude[i] = b & MAGNITUDE;
        sign[i] = b >> 28 & 8;
        largest = magnitude[i] > largest ? magnitude[i] : largest;
    }
    int fitted[BATCH], good[BATCH];
    float inverse[BATCH];
    for (int g = 0; g < BATCH; ++g) {
        int32_t most = 0;
        for (int s = g * SUBGROUPS; s < (g + 1) * SUBGROUPS; ++s)
            most = largest[s] > most ? largest[s] : most;
        good[g] = most < INFINITE ? -1 : 0;
        fitted[g] = good[g] && (most >> 23) > 2 ? (most >> 23) - 2 : 0;
        inverse[g] = float_of((254 - fitted[g]) << 23);
    }
    const Ints live = spread<int, Ints>(good);
    const Floats factor = spread<float, Floats>(inverse);
    Floats y[LANES];
    // What underflows here is far below the smallest threshold.
    for (int i = 0; i < LANES; ++i) y[i] = (Floats)(magnitude[i] & live) * factor;
    int bias[BATCH] = {};
    Floats multiplier = 1.0f - Floats{};
    if (METADATA == SG_EM) {
        batch.field = search<typename Type::Error>(y, fitted, adaptive, bias);
        const Floats base = (Floats)((spread<int, Ints>(bias) + 127) << 23);
        multiplier = base * (1 + 0.25f * __builtin_convertvector(batch.field, Floats));
    }
    for (int i = 0; i < LANES; ++i) batch.code[i] = e2m1(y[i], multiplier) | (sign[i] & live);
    if (METADATA == ELEM_EM) batch.field = refine(y, batch.code) & live;
    for (int g = 0; g < BATCH; ++g)
        batch.scale[g] = good[g] ? uint8_t(fitted[g] + bias[g]) : NAN_SCALE;
}

// Values as float32: exact, but for an Sg-EM group at the top, where overflow to infinity is the rule.
template <int METADATA>
inline void decode(const Batch& batch, float* value) {
    float power[BATCH];  // 2^(scale - 127); scale 0 is a subnormal
    int poison[BATCH];
    for (int g = 0; g < BATCH; ++g) {
        const int scale = batch.scale[g];
        power[g] = float_of(scale ? scale << 23 : 1 << 22);
        poison[g] = scale == NAN_SCALE ? QUIET_NAN : 0;
    }
    const Floats factor = spread<float, Floats>(power);
    const Ints nan = spread<int, Ints>(poison);
    Ints key = {};
    Floats refined = {}, multiplier = 1.0f - Floats{};
    if (METADATA == ELEM_EM) {
        key = top_key(batch.code);
        const Ints fine = 4 * (key >> 3) + batch.field - 1;
        refined = e2m3_value(fine > 0 ? fine : 0);
    }
    if (METADATA == SG_EM)
        multiplier = 1 + 0.25f * __builtin_convertvector(batch.field, Floats);
    for (int i = 0; i < LANES; ++i) {
        Floats magnitude = e2m1_value(batch.code[i] & 7) * multiplier;
        if (METADATA == ELEM_EM)
            magnitude = (key & 7) == LANES - 1 - i ? refined : magnitude;
        const Ints bits = (Ints)(magnitude * factor) | (batch.code[i] & 8) << 28;
        const Ints result = nan ? nan : bits;
        int32_t row[WIDTH];
        std::memcpy(row, &result, sizeof row);
        for (int s = 0; s < WIDTH; ++s) value[s * LANES + i] = float_of(row[s]);
    }
}

inline void pack(const Batch& batch, int count, uint8_t* codes, uint8_t* scales, uint8_t* meta) {
    for (int i = 0; i < LANES; i += 2) {
        const Ints pair = batch.code[i] | batch.code[i + 1] << 4;
        for (int s = 0; s < count * SUBGROUPS; ++s) codes[s * LANES / 2 + i / 2] = uint8_t(pair[s]);
    }
    for (int g = 0; g < count; ++g) {
        scales[g] = batch.scale[g];
        if (!meta) continue;
        int fields = 0;
        for (int s = 0; s < SUBGROUPS; ++s) fields |= batch.field[g * SUBGROUPS + s] << 2 * s;
        meta[g] = uint8_t(fields);
    }
}

inline void unpack(const uint8_t* codes, const uint8_t* scales, const uint8_t* meta, int count,
                   Batch& batch) {
    std::memset(&batch, 0, sizeof batch);
    for (int s = 0; s < count * SUBGROUPS; ++s) {
        for (int i = 0; i < LANES; ++i)
            batch.code[i][s] = codes[(s * LANES + i) / 2] >> 4 * (i & 1) & 15;
        if (meta) batch.field[s] = meta[s / SUBGROUPS] >> 2 * (s % SUBGROUPS) & 3;
    }
    std::memcpy(batch.scale, scales, size_t(count));
}

struct Task {
    bool adaptive;
    int64_t groups;
    const void* x;
    uint8_t *codes, *scales, *meta;
    void* values;
};

// One batch of `count` groups from `start` on; fewer than four are copied into a batch of zeros.
template <class Type, int METADATA, int WHAT>
inline void step(const Task& task, int64_t start, int count) {
    const Type* x = static_cast<const Type*>(task.x);
    uint8_t* codes = task.codes + start * (GROUP / 2);
    uint8_t* scales = task.scales + start;
    uint8_t* meta = METADATA == NONE ? nullptr : task.meta + start;
    Batch batch;
    if (WHAT == 2) {
        unpack(codes, scales, meta, count, batch);
    } else {
        Type padded[BATCH * GROUP] = {};
        const Type* source = x + start * GROUP;
        if (count < BATCH) {
            std::memcpy(padded, source, sizeof(Type) * size_t(count * GROUP));
            source = padded;
        }
        encode<Type, METADATA>(source, task.adaptive, batch);
    }
    if (WHAT == 0) {
        pack(batch, count, codes, scales, meta);
        return;
    }
    float value[BATCH * GROUP];
    decode<METADATA>(batch, value);
    Type* out = static_cast<Type*>(task.values) + start * GROUP;
    for (int i = 0; i < count * GROUP; ++i) out[i] = Type::round(value[i]);
}

template <class Type, int METADATA, int WHAT>
void loop(const Task& task) {
    int64_t g = 0;
    for (; g + BATCH <= task.groups; g += BATCH) step<Type, METADATA, WHAT>(task, g, BATCH);
    if (g < task.groups) step<Type, METADATA, WHAT>(task, g, int(task.groups - g));
}

template <class Type, int WHAT>
void with_metadata(int metadata, const Task& task) {
    if (metadata == NONE) loop<Type, NONE, WHAT>(task);
    if (metadata == ELEM_EM) loop<Type, ELEM_EM, WHAT>(task);
    if (metadata == SG_EM) loop<Type, SG_EM, WHAT>(task);
}

template <class Type>
void with_type(int what, int metadata, const Task& task) {
    if (what == 0) with_metadata<Type, 0>(metadata, task);
    if (what == 1) with_metadata<Type, 1>(metadata, task);
    if (what == 2) with_metadata<Type, 2>(metadata, task);
}

}  // namespace

// what: 0 quantize, 1 fake-quantize, 2 dequantize. type, of x and values: 0 bfloat16, 1 float16,
// 2 float32. Pointers that `what` does not use may be null.
extern "C" void m2xfp_run(int what, int type, int metadata, int adaptive, int64_t groups,
                          const void* x, uint8_t* codes, uint8_t* scales, uint8_t* meta,
                          void* values) {
    const Task task{adaptive != 0, groups, x, codes, scales, meta, values};
    if (type == 0) with_type<Bf16>(what, metadata, task);
    if (type == 1) with_type<Fp16>(what, metadata, task);
    if (type == 2) with_type<Fp32>(what, metadata, task);
}
