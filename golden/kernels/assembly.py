"""PTX that both kernel languages use."""

import triton.language as tl

__all__ = ["ADD_ROUNDED_TO_ODD"]

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
fma.rn.f64 d, h, 0d40B0000000000000, l;
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
"""``"=d,d,r,r,r"``: acc + (2^12 high + low) 2^e rounded once to float32, all in float64.

Operands are acc, high, low, and the upper word of 2^e. 2^52 + 2^31 + i is the float64 whose lower
word is i with its sign bit turned, which saves slow conversions. The sum is rounded to odd (of its
two neighbours, the odd one) before it is to float32. Downwards, a zero addend leaves acc, a
negative zero as well; upwards, a difference of nothing is a positive zero.
"""
