// From the packed bytes of an operand to rows of integers and scales, by tables.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

// How a format is unpacked. Tables come from the golden model's own decoding (products_native.py).
struct Recipe {
    const int16_t* limbs;     // [fields, planes, codes]: an element, times the factor of its field
    const int16_t* fine;      // [planes, 2, fine codes]: Elem-EM's refined elements, positive, negative
    const uint8_t* special;   // [codes]: 1 NaN, 2 infinity
    const int32_t* scales;    // [256, 3]: factor, exponent, as `special`
    int32_t bits, group, subgroup, elem_em, field_bits, code_bytes, meta_bytes, fine_codes;
    int32_t planes, bytes, lanes, padded, offset, is_right, unit;
};

// Rows to unpack, and where to: integers [rows, addends, planes, padded] and scales [rows, addends].
struct Rows {
    const uint8_t *codes, *scales, *meta;
    void *integers, *out_scales;
    int32_t *corrections, *low, *high, *special;
    int64_t rows, groups;
};

// EXACT: a scale as an integer times 2^(exponent + low), low that of the row.
struct Shift { int32_t exponent, factor; };

constexpr int MOST = 256;  // values a group

constexpr int NOWHERE = 1 << 20;  // the exponent of a group that counts for nothing

template <class Scale> inline Scale scale_of(int factor, int exponent);
template <> inline Shift scale_of<Shift>(int factor, int exponent) { return {exponent, factor}; }
template <> inline double scale_of<double>(int factor, int exponent) {
    const uint64_t field = uint64_t((exponent == NOWHERE ? 0 : exponent) + 1023) << 52;
    double power;
    std::memcpy(&power, &field, 8);
    return factor < 0 ? __builtin_nan("") : factor * power;
}
template <> inline float scale_of<float>(int factor, int exponent) {
    return float(scale_of<double>(factor, exponent));
}

template <class Scale> inline void settle(Scale*, Scale*, int) {}
template <> inline void settle<Shift>(Shift* scale, Shift* end, int low) {
    for (; scale < end; ++scale) {
        if (scale->exponent == NOWHERE) *scale = {0, 0};
        else scale->exponent -= low;
    }
}

inline void codes_of(const uint8_t* in, int bits, int count, uint8_t* out) {
    if (bits == 8) std::memcpy(out, in, size_t(count));
    if (bits == 4)
        for (int i = 0; i < count / 2; ++i) out[2 * i] = in[i] & 15, out[2 * i + 1] = in[i] >> 4;
    if (bits % 3 == 0) {
        const int each = 24 / bits, mask = (1 << bits) - 1;
        for (int i = 0; i < count / each; ++i) {
            const uint32_t word = in[3 * i] | in[3 * i + 1] << 8 | in[3 * i + 2] << 16;
            for (int k = 0; k < each; ++k) out[each * i + k] = word >> (bits * k) & mask;
        }
    }
}

// The first of the largest magnitudes of each subgroup takes its refined value.
template <class E>
void refine(const Recipe& r, const uint8_t* codes, const uint8_t* meta, int offset, E* out) {
    const int half = 1 << (r.bits - 1);
    for (int s = 0; s * r.subgroup < r.group; ++s) {
        const uint8_t* part = codes + s * r.subgroup;
        int best = 0;
        for (int i = 0; i < r.subgroup; ++i) {
            const int key = (part[i] & (half - 1)) << 8 | (255 - i);
            best = key > best ? key : best;
        }
        const int lane = 255 - (best & 255), field = meta[s * r.field_bits / 8] >> (s * r.field_bits % 8) & 3;
        int code = 4 * (best >> 8) + field - 1;
        code = code < 0 ? 0 : code;
        const int negative = part[lane] >= half, at = s * r.subgroup + lane;
        for (int p = 0; p < r.planes; ++p)
            out[p * MOST + at] = E(r.fine[(2 * p + negative) * r.fine_codes + code] + offset);
    }
}

template <class E, class Scale>
void unpack_as(const Recipe& r, const Rows& to) {
    const int size = 1 << r.bits, addends = r.group / r.lanes;
    const int mask = (1 << r.field_bits) - 1;
    uint8_t codes[MOST];
    E values[6 * MOST];
    E* out = static_cast<E*>(to.integers);
    Scale* scales = static_cast<Scale*>(to.out_scales);
    int32_t* corrections = to.corrections;
    for (int64_t row = 0; row < to.rows; ++row) {
        int low = 1 << 20, high = -(1 << 20), special = 0;
        Scale* first = scales;
        for (int64_t g = row * to.groups; g < (row + 1) * to.groups; ++g) {
            const uint8_t* meta = to.meta + g * r.meta_bytes;
            codes_of(to.codes + g * r.code_bytes, r.bits, r.group, codes);
            int odd = 0;
            if (r.special)
                for (int i = 0; i < r.group; ++i) odd |= r.special[codes[i]];
            for (int p = 0; p < r.planes; ++p)
                for (int i = 0; i < r.group; i += r.subgroup) {
                    const int s = i / r.subgroup;
                    const int field = r.field_bits && !r.elem_em ? meta[s * r.field_bits / 8] >> (s * r.field_bits % 8) & mask : 0;
                    const int16_t* table = r.limbs + (field * r.planes + p) * size;
                    for (int k = i; k < i + r.subgroup; ++k) values[p * MOST + k] = E(table[codes[k]] + r.offset);
                }
            if (r.elem_em) refine(r, codes, meta, r.offset, values);
            int any = 0;
            for (int p = 0; p < r.planes; ++p)
                for (int i = 0; i < r.group; ++i) any |= values[p * MOST + i] ^ E(r.offset);
            const int32_t* scale = r.scales + 3 * to.scales[g];
            odd |= scale[2];
            special |= odd;
            // A group of zeros counts for nothing, whatever its scale; a NaN in it is one of the scale.
            const int factor = odd ? -1 : scale[0];
            const bool counts = any && factor > 0;
            const int exponent = counts ? scale[1] + r.unit : NOWHERE;
            if (counts) low = exponent < low ? exponent : low, high = exponent > high ? exponent : high;
            for (int a = 0; a < addends; ++a) {
                for (int p = 0; p < r.planes; ++p, out += r.padded) {
                    std::memcpy(out, values + p * MOST + a * r.lanes, sizeof(E) * size_t(r.lanes));
                    for (int i = r.lanes; i < r.padded; ++i) out[i] = E(r.offset);
                }
                if (corrections) {
                    int sum = 0;
                    for (int i = 0; i < r.lanes; ++i) sum += int8_t(values[a * r.lanes + i]);
                    *corrections++ = -r.is_right * sum;
                }
                *scales++ = scale_of<Scale>(factor, exponent);
            }
        }
        settle(first, scales, low);
        to.low[row] = low, to.high[row] = high, to.special[row] = special;
    }
}

template <class Scale>
void unpack(const Recipe& r, const Rows& to) {
    if (r.bytes == 1) unpack_as<uint8_t, Scale>(r, to);
    else unpack_as<int16_t, Scale>(r, to);
}

}  // namespace
