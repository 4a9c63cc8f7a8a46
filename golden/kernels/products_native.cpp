// Matrix products of decoded operands on a CPU, bit for bit those of golden/formats/products.py.
//
// A group is summed from zero, exactly: every partial sum is a small multiple of one power of two.
// Then comes the one rounding, the addition of the sum to the accumulator. Where the sums are
// normal float32 numbers of at most 24 bits all of this is float32; else operands and sums are
// float64, and the addition rounds to odd first, so that rounding to float32 is the only one.
//
// Columns are packed in panels of a few vectors; a micro-kernel keeps the sums and the accumulators
// of some rows of a panel in registers. Rounding follows k, so K is cut in blocks, never summed
// apart.

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRows = 6;
#else
constexpr int kBytes = 32, kRows = 3;
#endif
constexpr int kVectors = 2;
constexpr int kDepth = 2048;  // values along K of a block of a panel: it stays in the second cache

typedef float Floats __attribute__((vector_size(kBytes), aligned(4)));
typedef float Halves __attribute__((vector_size(kBytes / 2), aligned(4)));
typedef double Doubles __attribute__((vector_size(kBytes), aligned(8)));
typedef int64_t Words __attribute__((vector_size(kBytes), aligned(8)));

// The caller's thread may flush subnormals or round otherwise: not in here.
struct UsualArithmetic {
  fenv_t callers;
  UsualArithmetic() { fegetenv(&callers), fesetenv(FE_DFL_ENV); }
  ~UsualArithmetic() { fesetenv(&callers); }
};

template <typename T> struct Vector;
template <> struct Vector<float> { typedef Floats type; };
template <> struct Vector<double> { typedef Doubles type; };

template <typename T> constexpr int lanes_of() { return kBytes / static_cast<int>(sizeof(T)); }

// The accumulators of a vector of outputs, which float32 holds whatever the operands are.
inline void accumulate(Floats& acc, Floats sum) { acc += sum; }

inline void accumulate(Doubles& acc, Doubles sum) {
  const Doubles total = acc + sum;
  const Doubles shadow = total - acc;
  const Doubles error = (acc - (total - shadow)) + (sum - shadow);
  Words bits;
  std::memcpy(&bits, &total, sizeof bits);
  const Words inexact = (error != 0.0) & (error == error) & ((bits & 1) == 0);
  const Words outward = (error > 0.0) == (total > 0.0);
  bits += inexact & ((outward & 2) - 1);
  Doubles odd;
  std::memcpy(&odd, &bits, sizeof odd);
  odd = __builtin_convertvector(__builtin_convertvector(odd, Halves), Doubles);
  const Words keep = sum == 0.0;
  Words old, fresh;
  std::memcpy(&old, &acc, sizeof old);
  std::memcpy(&fresh, &odd, sizeof fresh);
  fresh = (keep & old) | (~keep & fresh);
  std::memcpy(&acc, &fresh, sizeof fresh);
}

// Rows x kVectors vectors of outputs: `blocks` addends of `lanes` values each.
template <typename T, int Rows>
void micro(const T* a, int64_t stride_a, const T* panel, float* out, int64_t stride, int columns,
           int64_t blocks, int lanes, bool first) {
  typedef typename Vector<T>::type V;
  constexpr int n = lanes_of<T>();
  V acc[Rows][kVectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors; ++v)
      for (int i = 0; i < n; ++i) {
        const int column = v * n + i;
        acc[r][v][i] = first || column >= columns ? T(0) : T(out[r * stride + column]);
      }
  for (int64_t block = 0; block < blocks; ++block) {
    V sum[Rows][kVectors];
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kVectors; ++v) sum[r][v] = V{};
    for (int k = 0; k < lanes; ++k) {
      V b[kVectors];
      for (int v = 0; v < kVectors; ++v)
        std::memcpy(&b[v], panel + (k * kVectors + v) * n, sizeof(V));
      for (int r = 0; r < Rows; ++r) {
        const T x = a[r * stride_a + k];
        for (int v = 0; v < kVectors; ++v) sum[r][v] += x * b[v];
      }
    }
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kVectors; ++v) accumulate(acc[r][v], sum[r][v]);
    a += lanes;
    panel += static_cast<int64_t>(lanes) * kVectors * n;
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors; ++v)
      for (int i = 0; i < n; ++i)
        if (v * n + i < columns) out[r * stride + v * n + i] = static_cast<float>(acc[r][v][i]);
}

template <typename T>
void multiply(const T* a, const T* w, float* out, int64_t m, int64_t n, int64_t k, int64_t stride,
              int lanes, T* panel) {
  constexpr int width = kVectors * lanes_of<T>();
  const int64_t step = kDepth / lanes > 0 ? kDepth / lanes * lanes : lanes;
  for (int64_t column = 0; column < n; column += width) {
    const int columns = static_cast<int>(n - column < width ? n - column : width);
    for (int64_t start = 0; start < k; start += step) {
      const int64_t depth = k - start < step ? k - start : step;
      for (int c = 0; c < width; ++c) {
        const T* row = w + (column + (c < columns ? c : 0)) * k + start;
        for (int64_t i = 0; i < depth; ++i) panel[i * width + c] = row[i];
      }
      float* target = out + column;
      int64_t row = 0;
      for (; row + kRows <= m; row += kRows)
        micro<T, kRows>(a + row * k + start, k, panel, target + row * stride, stride, columns,
                        depth / lanes, lanes, start == 0);
      for (; row < m; ++row)
        micro<T, 1>(a + row * k + start, k, panel, target + row * stride, stride, columns,
                    depth / lanes, lanes, start == 0);
    }
  }
}

}  // namespace

extern "C" {

// Bytes that `panel` of the products below needs, for addends of so many lanes.
int64_t m2xfp_panel_bytes(int lanes) {
  const int64_t depth = lanes > kDepth ? lanes : kDepth;
  return depth * kVectors * kBytes;
}

void m2xfp_multiply_float(const float* a, const float* w, float* out, int64_t m, int64_t n,
                          int64_t k, int64_t stride, int lanes, void* panel) {
  const UsualArithmetic usual;
  multiply<float>(a, w, out, m, n, k, stride, lanes, static_cast<float*>(panel));
}

void m2xfp_multiply_double(const double* a, const double* w, float* out, int64_t m, int64_t n,
                           int64_t k, int64_t stride, int lanes, void* panel) {
  const UsualArithmetic usual;
  multiply<double>(a, w, out, m, n, k, stride, lanes, static_cast<double*>(panel));
}

// Values times one number, each rounded once.
void m2xfp_scale(float* x, int64_t count, const float* level) {
  const UsualArithmetic usual;
  for (int64_t i = 0; i < count; ++i) x[i] *= *level;
}

// The lowest and the highest exponent of the values of each row that are neither zero nor NaN;
// `low` above `high` where there are none.
void m2xfp_exponents(const float* x, int64_t rows, int64_t k, int32_t* low, int32_t* high) {
  for (int64_t row = 0; row < rows; ++row) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(x) + row * k;
    uint32_t least = 0xFFFFFFFFu, most = 0;
    for (int64_t i = 0; i < k; ++i) {
      const uint32_t magnitude = words[i] & 0x7FFFFFFFu;
      const bool number = magnitude != 0 && magnitude <= 0x7F800000u;
      const uint32_t small = number ? magnitude : 0xFFFFFFFFu;
      const uint32_t large = number ? magnitude : 0u;
      least = small < least ? small : least;
      most = large > most ? large : most;
    }
    low[row] = most ? static_cast<int32_t>(least >> 23) - 127 : (1 << 20);
    high[row] = most ? static_cast<int32_t>(most >> 23) - 127 : -(1 << 20);
  }
}
}
