// What stands between the products of a layer, in bf16. Matrices are row-major; `xs`, `ys` and the like are elements
// from a row to the next. All widths, strides and addresses are multiples of 8 elements, and rows of up to 4096 stay in
// registers: C packs of 8 per lane, one warp per row.

typedef bf16 T;
typedef Pack<bf16> P8;

// What `assemble` makes of one linear: n rows [weight | scaling b] of a widened weight, `stride` apart, of which `copied`
// columns are the weight's and the r from there on and `column` b's; the rows of its a, rounded; and its bias.
struct Assembling {
  const T* weight;
  const float *a, *b;
  const T* bias;
  T *wide, *low, *to_bias;
  int n, k, copied, r, stride, low_stride, column;
  float scaling;
  int first;  // of its rows among those of all linears
};

struct Assemblings {
  Assembling parts[8];
  int count;
};

// A warp for each row.
extern "C" __global__ void assemble(const __grid_constant__ Assemblings all) {
  int lane = threadIdx.x % 32, row = (int)(thread_index() / 32), i = 0;
  while (i + 1 < all.count && row >= all.parts[i + 1].first) i++;
  const Assembling& p = all.parts[i];
  row -= p.first;
  if (row >= p.n + p.r) return;
  if (row >= p.n) {
    const float* from = p.a + (i64)(row - p.n) * p.k;
    T* to = p.low + (i64)(row - p.n) * p.low_stride;
    for (int c = lane * 8; c < p.k; c += 256) {
      float v[8];
      load<4>(from + c, v);
      load<4>(from + c + 4, v + 4);
      store<8>(to + c, v);
    }
    return;
  }
  T* to = p.wide + (i64)row * p.stride;
  const P8* from = (const P8*)(p.weight + (i64)row * p.k);
  for (int c = lane; c < p.copied / 8; c += 32) ((P8*)to)[c] = from[c];
  for (int c = p.copied + lane; c < p.stride; c += 32) {
    int j = c - p.copied - p.column;
    to[c] = Narrow<T>::of(j >= 0 && j < p.r ? p.scaling * p.b[(i64)row * p.r + j] : 0.f);
  }
  if (p.to_bias && lane == 0) p.to_bias[row] = p.bias ? p.bias[row] : Narrow<T>::of(0.f);
}

// Columns of any number to a matrix of their own.
extern "C" __global__ void copy_columns(const T* x, T* y, i64 rows, int d, int xs, int ys) {
  for (i64 i = thread_index(); i < rows * d; i += thread_count()) y[i / d * ys + i % d] = x[i / d * xs + i % d];
}

// out = x (+ y).
extern "C" __global__ void add_rows(const T* x, const T* y, T* out, i64 rows, int d, int xs, int ys, int os) {
  int chunks = d / 8;
  for (i64 i = thread_index(); i < rows * chunks; i += thread_count()) {
    i64 row = i / chunks;
    int c = (int)(i % chunks) * 8;
    float a[8], b[8];
    load<8>(x + row * xs + c, a);
    if (y) {
      load<8>(y + row * ys + c, b);
#pragma unroll
      for (int j = 0; j < 8; j++) a[j] += b[j];
    }
    store<8>(out + row * os + c, a);
  }
}

// x *= factor, a number on the device.
extern "C" __global__ void scale_rows(T* x, const float* factor, i64 packs) {
  for (i64 i = thread_index(); i < packs; i += thread_count()) {
    float v[8];
    load<8>(x + 8 * i, v);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] *= *factor;
    store<8>(x + 8 * i, v);
  }
}

// Three of the parts of n float32 numbers, one after the other: part 0 is the number rounded, part 1 what is left rounded, part
// 2 what is left then.
extern "C" __global__ void float_parts(const float* x, T* y, i64 n, int first, int second, int third) {
  for (i64 i = thread_index(); i < n; i += thread_count()) {
    T a = Narrow<T>::of(x[i]), b = Narrow<T>::of(x[i] - widen(a)), c = Narrow<T>::of(x[i] - widen(a) - widen(b));
    y[i] = first == 0 ? a : first == 1 ? b : c;
    y[n + i] = second == 0 ? a : second == 1 ? b : c;
    y[2 * n + i] = third == 0 ? a : third == 1 ? b : c;
  }
}

// The sum of three times n numbers.
extern "C" __global__ void sum_of_parts(const float* x, float* y, i64 n) {
  for (i64 i = thread_index(); i < n; i += thread_count()) y[i] = x[2 * n + i] + x[n + i] + x[i];
}

// mean (0 unless centred) and reciprocal deviation of a row of d elements in registers.
template <int C> __device__ __forceinline__ void row_moments(const float (&v)[C][8], int d, bool centred, float eps, float& mean, float& r) {
  int lane = threadIdx.x % 32;
  mean = 0.f;
  if (centred) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < C; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) sum += v[i][j];
    mean = warp_sum(sum) / d;
  }
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < C; i++)
    if ((32 * i + lane) * 8 < d)
#pragma unroll
      for (int j = 0; j < 8; j++) squares += (v[i][j] - mean) * (v[i][j] - mean);
  r = rsqrtf(warp_sum(squares) / d + eps);
}

template <int C> __device__ __forceinline__ void load_row(const T* x, int d, float (&v)[C][8]) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < C; i++) {
    if ((32 * i + lane) * 8 < d) {
      load<8>(x + (32 * i + lane) * 8, v[i]);
    } else {
#pragma unroll
      for (int j = 0; j < 8; j++) v[i][j] = 0.f;
    }
  }
}

// Writes the norm of a row, a layer norm where there is a bias, an RMS norm otherwise.
template <int C>
__device__ __forceinline__ void store_normal(float (&v)[C][8], const T* w, const T* bias, T* y, int d, float eps) {
  int lane = threadIdx.x % 32;
  float mean, r;
  row_moments(v, d, bias != 0, eps, mean, r);
#pragma unroll
  for (int i = 0; i < C; i++) {
    int c = (32 * i + lane) * 8;
    if (c >= d) continue;
    float wv[8], bv[8];
    load<8>(w + c, wv);
    if (bias) load<8>(bias + c, bv);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float normal = (v[i][j] - mean) * r;
      v[i][j] = bias ? normal * wv[j] + bv[j] : widen(Narrow<T>::of(normal)) * wv[j];
    }
    store<8>(y + c, v[i]);
  }
}

// y = norm(x + add), a layer norm where there is a bias, an RMS norm otherwise; the rounded sum goes to `sum`.
template <int C>
__device__ __forceinline__ void norm(const T* x, const T* add, T* sum, const T* w, const T* bias, T* y, i64 rows, int d, int xs, int as,
                     int ss, int ys, float eps) {
  int lane = threadIdx.x % 32;
  for (i64 row = thread_index() / 32; row < rows; row += thread_count() / 32) {
    float v[C][8];
    load_row(x + row * xs, d, v);
    if (add) {
#pragma unroll
      for (int i = 0; i < C; i++) {
        int c = (32 * i + lane) * 8;
        if (c >= d) continue;
        float a[8];
        load<8>(add + row * as + c, a);
        P8 pack;
#pragma unroll
        for (int j = 0; j < 8; j++) {
          pack.v[j] = Narrow<T>::of(v[i][j] + a[j]);
          v[i][j] = widen(pack.v[j]);
        }
        *(P8*)(sum + row * ss + c) = pack;
      }
    }
    store_normal(v, w, bias, y + row * ys, d, eps);
  }
}

// y = norm(words[ids[i]] + places[i % t]), with a bias; the sum is rounded.
template <int C>
__device__ __forceinline__ void embed_norm(const T* words, const u32* ids, const T* places, const T* w, const T* bias, T* y, i64 rows,
                                           int t, int d, float eps) {
  int lane = threadIdx.x % 32;
  for (i64 row = thread_index() / 32; row < rows; row += thread_count() / 32) {
    float v[C][8], place[C][8];
    load_row(words + (i64)ids[row] * d, d, v);
    load_row(places + row % t * d, d, place);
#pragma unroll
    for (int i = 0; i < C; i++)
#pragma unroll
      for (int j = 0; j < 8; j++) v[i][j] = widen(Narrow<T>::of(v[i][j] + place[i][j]));
    store_normal(v, w, bias, y + row * d, d, eps);
  }
}

// dx = the norm's gradient (+ add), for the gradient g (+ g2) of its value, which goes to y, unless that is null, once more.
// y may be g. MORE: there may be g2 and y.
template <int C, bool MORE>
__device__ __forceinline__ void norm_backward(const T* x, const T* w, const T* bias, const T* g, const T* g2, const T* add, T* dx, T* y,
                                              i64 rows, int d, int xs, int gs, int g2s, int as, int ds, int ys, float eps) {
  int lane = threadIdx.x % 32;
  bool centred = bias != 0;
  for (i64 row = thread_index() / 32; row < rows; row += thread_count() / 32) {
    float v[C][8], gw[C][8], mean, r, along = 0.f, shift = 0.f;
    load_row(x + row * xs, d, v);
    load_row(g + row * gs, d, gw);
    row_moments(v, d, centred, eps, mean, r);
#pragma unroll
    for (int i = 0; i < C; i++) {
      int c = (32 * i + lane) * 8;
      if (c >= d) continue;
      float wv[8], more[8] = {};
      load<8>(w + c, wv);
      if (MORE && g2) load<8>(g2 + row * g2s + c, more);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        gw[i][j] = (gw[i][j] + more[j]) * wv[j];
        along += gw[i][j] * (v[i][j] - mean);
        shift += gw[i][j];
      }
      if (MORE && y) {
        float bv[8] = {};
        if (centred) load<8>(bias + c, bv);
#pragma unroll
        for (int j = 0; j < 8; j++) {
          float normal = (v[i][j] - mean) * r;
          more[j] = centred ? normal * wv[j] + bv[j] : widen(Narrow<T>::of(normal)) * wv[j];
        }
        store<8>(y + row * ys + c, more);
      }
    }
    along = warp_sum(along) * r / d;
    shift = centred ? warp_sum(shift) / d : 0.f;
#pragma unroll
    for (int i = 0; i < C; i++) {
      int c = (32 * i + lane) * 8;
      if (c >= d) continue;
      float a[8] = {};
      if (add) load<8>(add + row * as + c, a);
#pragma unroll
      for (int j = 0; j < 8; j++) a[j] += (gw[i][j] - shift - (v[i][j] - mean) * r * along) * r;
      store<8>(dx + row * ds + c, a);
    }
  }
}

#define NORMS(C)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(128)                                                                    \
      embed_norm_##C(const T* words, const u32* ids, const T* places, const T* w, const T* bias, T* y, i64 rows,       \
                     int t, int d, float eps) {                                                                        \
    embed_norm<C>(words, ids, places, w, bias, y, rows, t, d, eps);                                                    \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128)                                                                    \
      norm_##C(const T* x, const T* add, T* sum, const T* w, const T* bias, T* y, i64 rows, int d, int xs, int as,     \
               int ss, int ys, float eps) {                                                                            \
    norm<C>(x, add, sum, w, bias, y, rows, d, xs, as, ss, ys, eps);                                                    \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128)                                                                    \
      norm_backward_##C(const T* x, const T* w, const T* bias, const T* g, const T* g2, const T* add, T* dx, T* y,      \
                        i64 rows, int d, int xs, int gs, int g2s, int as, int ds, int ys, float eps) {                 \
    norm_backward<C, false>(x, w, bias, g, g2, add, dx, y, rows, d, xs, gs, g2s, as, ds, ys, eps);                     \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(128)                                                                    \
      norm_backward_more_##C(const T* x, const T* w, const T* bias, const T* g, const T* g2, const T* add, T* dx,      \
                             T* y, i64 rows, int d, int xs, int gs, int g2s, int as, int ds, int ys, float eps) {      \
    norm_backward<C, true>(x, w, bias, g, g2, add, dx, y, rows, d, xs, gs, g2s, as, ds, ys, eps);                      \
  }
NORMS(1)
NORMS(2)
NORMS(3)
NORMS(4)
NORMS(8)
NORMS(16)

// Rotates the first `heads` heads of every row in place, by the negative angle if `sign` is -1. Rows are positions
// 0..t of one sequence after the other.
extern "C" __global__ void rope_rows(T* x, const float* cos, const float* sin, i64 rows, int xs, int t, int heads,
                                     int d, float sign) {
  int half = d / 2, chunks = half / 8;
  for (i64 i = thread_index(); i < rows * heads * chunks; i += thread_count()) {
    i64 row = i / (heads * chunks);
    int rest = (int)(i % (heads * chunks)), c = rest % chunks * 8, time = (int)(row % t);
    T* p = x + row * xs + rest / chunks * d + c;
    float a[8], b[8], y1[8], y2[8];
    load<8>(p, a);
    load<8>(p + half, b);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float co = cos[(i64)time * half + c + j], si = sign * sin[(i64)time * half + c + j];
      y1[j] = a[j] * co - b[j] * si;
      y2[j] = b[j] * co + a[j] * si;
    }
    store<8>(p, y1);
    store<8>(p + half, y2);
  }
}

__device__ __forceinline__ float logistic(float x) { return 1.f / (1.f + __expf(-x)); }

// y = silu(gate) up, where a row of x is [gate | up], m each.
extern "C" __global__ void gated(const T* x, T* y, i64 rows, int m, int ys) {
  int chunks = m / 8;
  let_next_start();
  wait_for_previous();
  for (i64 i = thread_index(); i < rows * chunks; i += thread_count()) {
    i64 row = i / chunks;
    int c = (int)(i % chunks) * 8;
    float z[8], u[8];
    load<8>(x + row * 2 * m + c, z);
    load<8>(x + row * 2 * m + m + c, u);
#pragma unroll
    for (int j = 0; j < 8; j++) z[j] *= logistic(z[j]) * u[j];
    store<8>(y + row * ys + c, z);
  }
}

// The gradient of x in its place, for the gradient g of silu(gate) up, which goes to y, unless that is null, once more. y may be g.
extern "C" __global__ void gated_backward(T* x, const T* g, T* y, i64 rows, int m, int gs, int ys) {
  int chunks = m / 8;
  for (i64 i = thread_index(); i < rows * chunks; i += thread_count()) {
    i64 row = i / chunks;
    int c = (int)(i % chunks) * 8;
    float z[8], u[8], gv[8];
    load<8>(x + row * 2 * m + c, z);
    load<8>(x + row * 2 * m + m + c, u);
    load<8>(g + row * gs + c, gv);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float s = logistic(z[j]), zj = z[j], uj = u[j];
      z[j] = gv[j] * uj * s * (1.f + zj * (1.f - s));
      u[j] = gv[j] * zj * s;
      gv[j] = zj * (s * uj);
    }
    store<8>(x + row * 2 * m + c, z);
    store<8>(x + row * 2 * m + m + c, u);
    if (y) store<8>(y + row * ys + c, gv);
  }
}

// Phi(x), and the density of the normal distribution without its factor 1 / sqrt(2 pi), which it shares an exponential with.
// The upper tail is t q(t) exp(-x^2 / 2) / 2 with t = 1 / (1 + 0.4 |x| / sqrt(2)), whose polynomial q was fitted by
// interpolation at Chebyshev's nodes for |x| < 13: the relative error is below 1e-7 in both tails.
__device__ __forceinline__ float normal(float x, float& density) {
  float t = __fdividef(1.f, 1.f + 0.282842712f * fabsf(x));
  float q = 0.0368954143f;
  q = q * t - 0.119385839f;
  q = q * t + 0.0413049756f;
  q = q * t + 0.136083379f;
  q = q * t + 0.0470367134f;
  q = q * t + 0.207099574f;
  q = q * t + 0.198441055f;
  q = q * t + 0.226917947f;
  q = q * t + 0.225606813f;
  density = __expf(-0.5f * x * x);
  float tail = 0.5f * t * q * density;
  return x > 0.f ? 1.f - tail : tail;
}

// y = x Phi(x).
extern "C" __global__ void gelu_rows(const T* x, T* y, i64 rows, int m, int ys) {
  int chunks = m / 8;
  let_next_start();
  wait_for_previous();
  for (i64 i = thread_index(); i < rows * chunks; i += thread_count()) {
    i64 row = i / chunks;
    int c = (int)(i % chunks) * 8;
    float v[8], density;
    load<8>(x + row * m + c, v);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] *= normal(v[j], density);
    store<8>(y + row * ys + c, v);
  }
}

// dx, which may be g, and once more the value, in the place of x.
extern "C" __global__ void gelu_rows_backward(T* x, const T* g, T* dx, i64 rows, int m, int gs, int ds) {
  int chunks = m / 8;
  for (i64 i = thread_index(); i < rows * chunks; i += thread_count()) {
    i64 row = i / chunks;
    int c = (int)(i % chunks) * 8;
    float v[8], gv[8], density;
    load<8>(x + row * m + c, v);
    load<8>(g + row * gs + c, gv);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float phi = normal(v[j], density);
      gv[j] *= phi + v[j] * 0.398942280f * density;
      v[j] *= phi;
    }
    store<8>(dx + row * ds + c, gv);
    store<8>(x + row * m + c, v);
  }
}
