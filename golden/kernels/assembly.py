"""PTX that both kernel languages use."""

import triton.language as tl

__all__ = ["ADD_NORMAL", "ADD_ROUNDED_TO_ODD"]

ADD_ROUNDED_TO_ODD = tl.constexpr("""
{
.reg .f64 h, l, d, p, down, up;
.reg .f32 f;
.reg .b32 t, u;
.reg .pred odd, stay;
xor.b32 t, $2, 0x80000000;
mov.b64 h, {t, 0x43300000};
sub.rn.f64 h, h, 0d4330000080000000;
xor.b32 t, $3, 0x80000000;
mov.b64 l, {t, 0x43300000};
fma.rn.f64 d, h, 0d4110000000000000, l;
sub.rn.f64 d, d, 0d4330000080000000;
mov.b32 u, 0;
mov.b64 p, {u, $4};
fma.rm.f64 down, d, p, $1;
fma.rp.f64 up, d, p, $1;
mov.b64 {t, u}, down;
and.b32 t, t, 1;
setp.ne.u32 odd, t, 0;
setp.eq.or.f64 stay, d, 0d0000000000000000, odd;
selp.f64 down, down, up, stay;
cvt.rn.f32.f64 f, down;
cvt.f64.f32 $0, f;
}
""")
"""``"=d,d,r,r,r"``: acc + (2^18 high + low) 2^e rounded once to float32, all in float64.

Operands are acc, high, low, and the upper word of 2^e. 2^52 + 2^31 + i is the float64 whose lower
word is i with its sign bit turned, which saves slow conversions. The sum is rounded to odd (of its
two neighbours, the odd one) before it is to float32. Downwards, a zero addend leaves acc, a
negative zero as well; upwards, a difference of nothing is a positive zero.
"""

ADD_NORMAL = tl.constexpr("""
{
.reg .f64 h, l, p, down, up, big;
.reg .b32 t, u;
.reg .pred odd;
xor.b32 t, $2, 0x80000000;
mov.b64 h, {t, 0x44500000};
add.rn.f64 h, h, 0dC450000480002000;
xor.b32 t, $3, 0x80000000;
mov.b64 l, {t, 0x43300000};
add.rn.f64 h, h, l;
mov.b32 u, 0;
mov.b64 p, {u, $4};
fma.rm.f64 down, h, p, $1;
fma.rp.f64 up, h, p, $1;
mov.b64 {t, u}, down;
and.b32 t, t, 1;
setp.ne.u32 odd, t, 0;
selp.f64 down, down, up, odd;
mov.b64 {t, u}, down;
and.b32 u, u, 0x7FF00000;
add.u32 u, u, 0x01D80000;
mov.b32 t, 0;
mov.b64 big, {t, u};
add.rn.f64 down, down, big;
sub.rn.f64 $0, down, big;
}
""")
"""``"=d,d,r,r,r"``: the same where every sum is 0 or a normal float32 number, without conversions.

2^18 (2^31 + high) stands in the lower word of a float64 near 2^70; what is subtracted leaves
2^18 high - 2^52 - 2^31. The sum, rounded to odd, is rounded to 24 bits by adding and subtracting
1.5 * 2^29 times the power of two below it, whose last bit is that of the float32 result.
"""
