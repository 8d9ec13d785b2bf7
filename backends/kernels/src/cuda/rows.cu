// Norms, rotary embedding, activations, bias: one pass over memory each.

// ---- norms: one warp per row ----

template <class T, int V>
__device__ __forceinline__ void moments(const T* x, int d, int centred, float eps, float& mean, float& r) {
  int lane = threadIdx.x % 32;
  float v[V];
  mean = 0.f;
  if (centred) {
    float sum = 0.f;
    for (int i = lane * V; i < d; i += 32 * V) {
      load<V>(x + i, v);
#pragma unroll
      for (int j = 0; j < V; j++) sum += v[j];
    }
    mean = warp_sum(sum) / d;
  }
  float squares = 0.f;
  for (int i = lane * V; i < d; i += 32 * V) {
    load<V>(x + i, v);
#pragma unroll
    for (int j = 0; j < V; j++) squares += (v[j] - mean) * (v[j] - mean);
  }
  r = rsqrtf(warp_sum(squares) / d + eps);
}

// `b` is null for the RMS norm, which rounds before it multiplies by the weight.
template <class T, int V>
__device__ void norm_rows(const T* x, const T* w, const T* b, T* y, i64 rows, int d, float eps) {
  int lane = threadIdx.x % 32;
  for (i64 row = thread_index() / 32; row < rows; row += thread_count() / 32) {
    const T* xr = x + row * d;
    float mean, r, xv[V], wv[V], bv[V];
    moments<T, V>(xr, d, b != 0, eps, mean, r);
    for (int i = lane * V; i < d; i += 32 * V) {
      load<V>(xr + i, xv);
      load<V>(w + i, wv);
      if (b) load<V>(b + i, bv);
#pragma unroll
      for (int j = 0; j < V; j++) {
        float normal = (xv[j] - mean) * r;
        xv[j] = b ? normal * wv[j] + bv[j] : widen(Narrow<T>::of(normal)) * wv[j];
      }
      store<V>(y + row * d + i, xv);
    }
  }
}

template <class T>
__device__ void norm(const T* x, const T* w, const T* b, T* y, i64 rows, int d, float eps) {
  const int N = Pack<T>::N;
  if (d % N == 0 && aligned(x) && aligned(w) && aligned(b) && aligned(y))
    norm_rows<T, N>(x, w, b, y, rows, d, eps);
  else
    norm_rows<T, 1>(x, w, b, y, rows, d, eps);
}

#define ARGS(T) (const T* x, const T* w, const T* b, T* y, i64 rows, int d, float eps)
FOR_TYPES(norm, ARGS, (x, w, b, y, rows, d, eps))
#undef ARGS

// Gradient of the input; `stats` keeps mean and reciprocal deviation of each row for the parameter gradients.
template <class T, int V>
__device__ void norm_backward_rows(const T* x, const T* w, const T* g, T* dx, float* stats, i64 rows, int d, float eps,
                                   int centred) {
  int lane = threadIdx.x % 32;
  for (i64 row = thread_index() / 32; row < rows; row += thread_count() / 32) {
    const T *xr = x + row * d, *gr = g + row * d;
    float mean, r, xv[V], wv[V], gv[V];
    moments<T, V>(xr, d, centred, eps, mean, r);
    if (lane == 0) {
      stats[2 * row] = mean;
      stats[2 * row + 1] = r;
    }
    float along = 0.f, shift = 0.f;
    for (int i = lane * V; i < d; i += 32 * V) {
      load<V>(xr + i, xv);
      load<V>(w + i, wv);
      load<V>(gr + i, gv);
#pragma unroll
      for (int j = 0; j < V; j++) {
        along += gv[j] * wv[j] * (xv[j] - mean);
        shift += gv[j] * wv[j];
      }
    }
    along = warp_sum(along) * r / d;
    shift = centred ? warp_sum(shift) / d : 0.f;
    for (int i = lane * V; i < d; i += 32 * V) {
      load<V>(xr + i, xv);
      load<V>(w + i, wv);
      load<V>(gr + i, gv);
#pragma unroll
      for (int j = 0; j < V; j++) xv[j] = (gv[j] * wv[j] - shift - (xv[j] - mean) * r * along) * r;
      store<V>(dx + row * d + i, xv);
    }
  }
}

template <class T>
__device__ void norm_backward(const T* x, const T* w, const T* g, T* dx, float* stats, i64 rows, int d, float eps,
                              int centred) {
  const int N = Pack<T>::N;
  if (d % N == 0 && aligned(x) && aligned(w) && aligned(g) && aligned(dx))
    norm_backward_rows<T, N>(x, w, g, dx, stats, rows, d, eps, centred);
  else
    norm_backward_rows<T, 1>(x, w, g, dx, stats, rows, d, eps, centred);
}

#define ARGS(T) (const T* x, const T* w, const T* g, T* dx, float* stats, i64 rows, int d, float eps, int centred)
FOR_TYPES(norm_backward, ARGS, (x, w, g, dx, stats, rows, d, eps, centred))
#undef ARGS

// Column sums of g * normal and of g over the rows of one block row; block (32, 8), `parts` is [gridDim.y, 2, d].
template <class T>
__device__ void norm_parameters(const T* x, const T* g, const float* stats, float* parts, i64 rows, int d) {
  __shared__ float sums[2][8][33];
  int column = blockIdx.x * 32 + threadIdx.x;
  float dw = 0.f, db = 0.f;
  if (column < d) {
    for (i64 row = blockIdx.y * 8 + threadIdx.y; row < rows; row += (i64)gridDim.y * 8) {
      float gv = widen(g[row * d + column]);
      dw += gv * (widen(x[row * d + column]) - stats[2 * row]) * stats[2 * row + 1];
      db += gv;
    }
  }
  sums[0][threadIdx.y][threadIdx.x] = dw;
  sums[1][threadIdx.y][threadIdx.x] = db;
  __syncthreads();
  if (threadIdx.y < 2 && column < d) {
    float total = 0.f;
    for (int i = 0; i < 8; i++) total += sums[threadIdx.y][i][threadIdx.x];
    parts[((i64)blockIdx.y * 2 + threadIdx.y) * d + column] = total;
  }
}

#define ARGS(T) (const T* x, const T* g, const float* stats, float* parts, i64 rows, int d)
FOR_TYPES(norm_parameters, ARGS, (x, g, stats, parts, rows, d))
#undef ARGS

// Adds the parts in order; `out` is [2, d].
template <class T> __device__ void norm_parameters_sum(const float* parts, T* out, int count, int d) {
  for (i64 i = thread_index(); i < 2 * d; i += thread_count()) {
    float total = 0.f;
    for (int part = 0; part < count; part++) total += parts[(i64)part * 2 * d + i];
    out[i] = Narrow<T>::of(total);
  }
}

#define ARGS(T) (const float* parts, T* out, int count, int d)
FOR_TYPES(norm_parameters_sum, ARGS, (parts, out, count, d))
#undef ARGS

// ---- rotary embedding: x is a strided [b, h, t, d], y is contiguous, sign is 1 or -1 (backward) ----

template <class T, int V>
__device__ void rope_pairs(const T* x, const float* cos, const float* sin, T* y, i64 sb, i64 sh, i64 st, i64 rows,
                           int h, int t, int d, float sign) {
  int half = d / 2, chunks = half / V;
  for (i64 i = thread_index(); i < rows * chunks; i += thread_count()) {
    i64 row = i / chunks;
    int c = (int)(i % chunks) * V, time = (int)(row % t), head = (int)(row / t % h);
    const T* p = x + (row / t / h) * sb + head * sh + time * st + c;
    float a[V], b[V], y1[V], y2[V];
    load<V>(p, a);
    load<V>(p + half, b);
#pragma unroll
    for (int j = 0; j < V; j++) {
      float co = cos[time * (i64)half + c + j], si = sign * sin[time * (i64)half + c + j];
      y1[j] = a[j] * co - b[j] * si;
      y2[j] = b[j] * co + a[j] * si;
    }
    store<V>(y + row * d + c, y1);
    store<V>(y + row * d + half + c, y2);
  }
}

template <class T>
__device__ void rope(const T* x, const float* cos, const float* sin, T* y, i64 sb, i64 sh, i64 st, i64 rows, int h,
                     int t, int d, float sign) {
  const int N = Pack<T>::N;
  if (d % (2 * N) == 0 && sb % N == 0 && sh % N == 0 && st % N == 0 && aligned(x) && aligned(y))
    rope_pairs<T, N>(x, cos, sin, y, sb, sh, st, rows, h, t, d, sign);
  else
    rope_pairs<T, 1>(x, cos, sin, y, sb, sh, st, rows, h, t, d, sign);
}

#define ARGS(T)                                                                                                   \
  (const T* x, const float* cos, const float* sin, T* y, i64 sb, i64 sh, i64 st, i64 rows, int h, int t, int d, \
   float sign)
FOR_TYPES(rope, ARGS, (x, cos, sin, y, sb, sh, st, rows, h, t, d, sign))
#undef ARGS

// ---- the new position of each row of a cache [b, h, room, d], its last one; x is a strided [b, h, 1, d] ----

template <class T>
__device__ void store_last(T* cache, const T* x, const u32* lengths, i64 sb, i64 sh, i64 n, int h, int room, int d) {
  for (i64 i = thread_index(); i < n; i += thread_count()) {
    i64 row = i / d, b = row / h;
    int c = (int)(i % d), head = (int)(row % h);
    cache[(row * room + lengths[b] - 1) * d + c] = x[b * sb + head * sh + c];
  }
}

#define ARGS(T) (T* cache, const T* x, const u32* lengths, i64 sb, i64 sh, i64 n, int h, int room, int d)
FOR_TYPES(store_last, ARGS, (cache, x, lengths, sb, sh, n, h, room, d))
#undef ARGS

// ---- element-wise: packs, then the rest one by one ----

template <int V, class F> __device__ __forceinline__ void each(i64 first, i64 n, F f) {
  for (i64 i = first + thread_index() * V; i + V <= n; i += thread_count() * V) f(i);
}

__device__ __forceinline__ float sigmoid(float z) { return 1.f / (1.f + expf(-z)); }

template <class T, int V> struct SiluMul {
  const T *gate, *up;
  T* y;
  __device__ void operator()(i64 i) const {
    float z[V], u[V];
    load<V>(gate + i, z);
    load<V>(up + i, u);
#pragma unroll
    for (int j = 0; j < V; j++) z[j] = z[j] * sigmoid(z[j]) * u[j];
    store<V>(y + i, z);
  }
};

template <class T, int V> struct SiluMulBackward {
  const T *gate, *up, *g;
  T *dgate, *dup;
  __device__ void operator()(i64 i) const {
    float z[V], u[V], gv[V];
    load<V>(gate + i, z);
    load<V>(up + i, u);
    load<V>(g + i, gv);
#pragma unroll
    for (int j = 0; j < V; j++) {
      float s = sigmoid(z[j]), value = z[j];
      z[j] = gv[j] * u[j] * s * (1.f + value * (1.f - s));
      u[j] = gv[j] * value * s;
    }
    store<V>(dgate + i, z);
    store<V>(dup + i, u);
  }
};

// Standard normal distribution function, accurate in both tails.
__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * erfcf(-0.70710678f * x); }

template <class T, int V> struct Gelu {
  const T* x;
  T* y;
  __device__ void operator()(i64 i) const {
    float v[V];
    load<V>(x + i, v);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] *= normal_cdf(v[j]);
    store<V>(y + i, v);
  }
};

template <class T, int V> struct GeluBackward {
  const T *x, *g;
  T* dx;
  __device__ void operator()(i64 i) const {
    float v[V], gv[V];
    load<V>(x + i, v);
    load<V>(g + i, gv);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] = gv[j] * (normal_cdf(v[j]) + v[j] * 0.39894228f * expf(-0.5f * v[j] * v[j]));
    store<V>(dx + i, v);
  }
};

template <class T> __device__ void silu_mul(const T* gate, const T* up, T* y, i64 n) {
  const int N = Pack<T>::N;
  i64 whole = aligned(gate) && aligned(up) && aligned(y) ? n / N * N : 0;
  each<N>(0, whole, SiluMul<T, N>{gate, up, y});
  each<1>(whole, n, SiluMul<T, 1>{gate, up, y});
}

template <class T> __device__ void silu_mul_backward(const T* gate, const T* up, const T* g, T* dgate, T* dup, i64 n) {
  const int N = Pack<T>::N;
  bool packs = aligned(gate) && aligned(up) && aligned(g) && aligned(dgate) && aligned(dup);
  i64 whole = packs ? n / N * N : 0;
  each<N>(0, whole, SiluMulBackward<T, N>{gate, up, g, dgate, dup});
  each<1>(whole, n, SiluMulBackward<T, 1>{gate, up, g, dgate, dup});
}

template <class T> __device__ void gelu(const T* x, T* y, i64 n) {
  const int N = Pack<T>::N;
  i64 whole = aligned(x) && aligned(y) ? n / N * N : 0;
  each<N>(0, whole, Gelu<T, N>{x, y});
  each<1>(whole, n, Gelu<T, 1>{x, y});
}

template <class T> __device__ void gelu_backward(const T* x, const T* g, T* dx, i64 n) {
  const int N = Pack<T>::N;
  i64 whole = aligned(x) && aligned(g) && aligned(dx) ? n / N * N : 0;
  each<N>(0, whole, GeluBackward<T, N>{x, g, dx});
  each<1>(whole, n, GeluBackward<T, 1>{x, g, dx});
}

#define ARGS(T) (const T* gate, const T* up, T* y, i64 n)
FOR_TYPES(silu_mul, ARGS, (gate, up, y, n))
#undef ARGS
#define ARGS(T) (const T* gate, const T* up, const T* g, T* dgate, T* dup, i64 n)
FOR_TYPES(silu_mul_backward, ARGS, (gate, up, g, dgate, dup, n))
#undef ARGS
#define ARGS(T) (const T* x, T* y, i64 n)
FOR_TYPES(gelu, ARGS, (x, y, n))
#undef ARGS
#define ARGS(T) (const T* x, const T* g, T* dx, i64 n)
FOR_TYPES(gelu_backward, ARGS, (x, g, dx, n))
#undef ARGS

// ---- bias added in place to the rows of a product; blockIdx.y walks the rows ----

template <class T, int V> __device__ void add_bias_rows(T* y, const T* bias, i64 rows, int d) {
  float b[V], v[V];
  for (i64 column = thread_index() * V; column < d; column += thread_count() * V) {
    load<V>(bias + column, b);
    for (i64 row = blockIdx.y; row < rows; row += gridDim.y) {
      load<V>(y + row * d + column, v);
#pragma unroll
      for (int j = 0; j < V; j++) v[j] += b[j];
      store<V>(y + row * d + column, v);
    }
  }
}

template <class T> __device__ void add_bias(T* y, const T* bias, i64 rows, int d) {
  const int N = Pack<T>::N;
  if (d % N == 0 && aligned(y) && aligned(bias))
    add_bias_rows<T, N>(y, bias, rows, d);
  else
    add_bias_rows<T, 1>(y, bias, rows, d);
}

#define ARGS(T) (T * y, const T* bias, i64 rows, int d)
FOR_TYPES(add_bias, ARGS, (y, bias, rows, d))
#undef ARGS

// ---- rows by index, zeros where that is the largest number, added to others unless those are null ----

template <class T, int V>
__device__ void gather_packs(const T* x, const u32* rows, const T* onto, T* y, i64 n, int d) {
  int chunks = d / V;
  for (i64 i = thread_index(); i < n * chunks; i += thread_count()) {
    u32 row = rows[i / chunks];
    int c = (int)(i % chunks) * V;
    float v[V] = {}, more[V] = {};
    if (row != 0xffffffffu) load<V>(x + (i64)row * d + c, v);
    if (onto) load<V>(onto + i * V, more);
#pragma unroll
    for (int j = 0; j < V; j++) v[j] += more[j];
    store<V>(y + i * V, v);
  }
}

template <class T> __device__ void gather_rows(const T* x, const u32* rows, const T* onto, T* y, i64 n, int d) {
  const int N = Pack<T>::N;
  if (d % N == 0 && aligned(x) && aligned(y) && aligned(onto))
    gather_packs<T, N>(x, rows, onto, y, n, d);
  else
    gather_packs<T, 1>(x, rows, onto, y, n, d);
}

#define ARGS(T) (const T* x, const u32* rows, const T* onto, T* y, i64 n, int d)
FOR_TYPES(gather_rows, ARGS, (x, rows, onto, y, n, d))
#undef ARGS
