// A decoder layer that reads a few new positions behind remembered ones, in bf16: norms, products, rotation, the
// memory and residuals in five kernels. What they read is the weights; a warp makes the sums of two of their rows at
// once, for R positions. Widths are multiples of 8 elements and addresses of 16 bytes.

// Products of the rows w0 and w1 with R rows of x; every lane gets them.
template <int R> __device__ __forceinline__ void products(const T* w0, const T* w1, const T* x, int xs, int k, float (&sum)[2][R]) {
#pragma unroll
  for (int r = 0; r < R; r++) sum[0][r] = sum[1][r] = 0.f;
#pragma unroll 4
  for (int c = threadIdx.x % 32 * 8; c < k; c += 256) {
    float a[8], b[8];
    load<8>(w0 + c, a);
    load<8>(w1 + c, b);
#pragma unroll
    for (int r = 0; r < R; r++) {
      float v[8];
      load<8>(x + r * xs + c, v);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        sum[0][r] += a[j] * v[j];
        sum[1][r] += b[j] * v[j];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; r++) {
    sum[0][r] = warp_sum(sum[0][r]);
    sum[1][r] = warp_sum(sum[1][r]);
  }
}

// The RMS norms of R rows of x, dense, to shared memory.
template <int R> __device__ __forceinline__ void norms(const T* x, const T* weight, T* y, int d, float eps) {
  for (int r = 0; r < R; r++) {
    float squares = 0.f, v[8], w[8];
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
      load<8>(x + (i64)r * d + c, v);
#pragma unroll
      for (int j = 0; j < 8; j++) squares += v[j] * v[j];
    }
    float scale = rsqrtf(block_sum(squares) / d + eps);
    for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
      load<8>(x + (i64)r * d + c, v);
      load<8>(weight + c, w);
#pragma unroll
      for (int j = 0; j < 8; j++) v[j] = widen(Narrow<T>::of(v[j] * scale)) * w[j];
      store<8>(y + r * d + c, v);
    }
  }
  __syncthreads();
}

__device__ __forceinline__ int first_warp() { return blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; }
__device__ __forceinline__ int warp_count() { return gridDim.x * (blockDim.x / 32); }

// q of the norm of x, rotated, to rows of stride `qs`; k, rotated, and v to the memory.
template <int R>
__device__ __forceinline__ void attend_in(const T* x, const T* norm, Projections w, T* q, T* keys, T* values, const T* cos,
                                          const T* sin, Place place, int width, int qs, int h, int hkv, int d, float eps) {
  SHARED(memory);
  T* y = (T*)memory;
  norms<R>(x, norm, y, width, eps);
  int half = d / 2, lane = threadIdx.x % 32;
  for (int p = first_warp(); p < (h + 2 * hkv) * half; p += warp_count()) {
    int head = p / half, i = p % half, own = head < h ? head : head < h + hkv ? head - h : head - h - hkv;
    const T* weight = head < h ? w.q : head < h + hkv ? w.k : w.v;
    const T* bias = head < h ? w.q_bias : head < h + hkv ? w.k_bias : w.v_bias;
    int row = own * d + i;
    float sum[2][R];
    products<R>(weight + (i64)row * width, weight + (i64)(row + half) * width, y, width, width, sum);
#pragma unroll
    for (int r = 0; r < R; r++) {
      if (lane != r) continue;
      float a = sum[0][r], b = sum[1][r];
      if (bias) {
        a += widen(bias[row]);
        b += widen(bias[row + half]);
      }
      a = widen(Narrow<T>::of(a));
      b = widen(Narrow<T>::of(b));
      if (head < h + hkv) rotate(cos, sin, (i64)r * half + i, a, b);
      T* to = head < h ? q + (i64)r * qs + row : (head < h + hkv ? keys : values) + memory_index(place, r, own, d) + i;
      to[0] = Narrow<T>::of(a);
      to[half] = Narrow<T>::of(b);
    }
  }
}

// x += W y + bias for the matrix W [n, k].
template <int R>
__device__ __forceinline__ void add_product(T* x, const T* y, const T* weight, const T* bias, int n, int k) {
  int lane = threadIdx.x % 32;
  for (int p = 2 * first_warp(); p < n; p += 2 * warp_count()) {
    float sum[2][R];
    products<R>(weight + (i64)p * k, weight + (i64)(p + 1) * k, y, k, k, sum);
#pragma unroll
    for (int r = 0; r < R; r++) {
      if (lane != r) continue;
      for (int i = 0; i < 2; i++) {
        T* to = x + (i64)r * n + p + i;
        *to = Narrow<T>::of(widen(*to) + sum[i][r] + (bias ? widen(bias[p + i]) : 0.f));
      }
    }
  }
}

// y = silu(gate) up for the norm of x, m wide.
template <int R>
__device__ __forceinline__ void gate_up(const T* x, const T* norm, const T* gate, const T* up, const T* gate_bias, const T* up_bias,
                                        T* y, int width, int m, float eps) {
  SHARED(memory);
  T* normal = (T*)memory;
  norms<R>(x, norm, normal, width, eps);
  int lane = threadIdx.x % 32;
  for (int p = first_warp(); p < m; p += warp_count()) {
    float sum[2][R];
    products<R>(gate + (i64)p * width, up + (i64)p * width, normal, width, width, sum);
#pragma unroll
    for (int r = 0; r < R; r++) {
      if (lane != r) continue;
      float g = sum[0][r] + (gate_bias ? widen(gate_bias[p]) : 0.f), u = sum[1][r] + (up_bias ? widen(up_bias[p]) : 0.f);
      y[(i64)r * m + p] = Narrow<T>::of(silu(g) * u);
    }
  }
}

#define FOR_ROWS(R)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(256)                                                                      \
      attend_in_##R(const T* x, const T* norm, Projections w, T* q, T* keys, T* values, const T* cos, const T* sin,      \
                    Place place, int width, int qs, int h, int hkv, int d, float eps) {                                  \
    attend_in<R>(x, norm, w, q, keys, values, cos, sin, place, width, qs, h, hkv, d, eps);                               \
  }                                                                                                                      \
  extern "C" __global__ void __launch_bounds__(256)                                                                      \
      add_product_##R(T* x, const T* y, const T* weight, const T* bias, int n, int k) {                                  \
    add_product<R>(x, y, weight, bias, n, k);                                                                            \
  }                                                                                                                      \
  extern "C" __global__ void __launch_bounds__(256)                                                                      \
      gate_up_##R(const T* x, const T* norm, const T* gate, const T* up, const T* gate_bias, const T* up_bias, T* y,     \
                  int width, int m, float eps) {                                                                         \
    gate_up<R>(x, norm, gate, up, gate_bias, up_bias, y, width, m, eps);                                                 \
  }
FOR_ROWS(1)
FOR_ROWS(2)
FOR_ROWS(3)
FOR_ROWS(4)

// For many rows, whose products are made elsewhere: the rotation of q in place, and of k on its way to the memory, where
// v goes as well. Rows of x are [q | k | v].
extern "C" __global__ void remember(T* x, T* keys, T* values, const T* cos, const T* sin, Place place, int rows, int h,
                                    int hkv, int d) {
  int half = d / 2, chunks = half / 8, heads = h + 2 * hkv;
  for (i64 i = thread_index(); i < (i64)rows * heads * chunks; i += thread_count()) {
    int row = (int)(i / (heads * chunks)), rest = (int)(i % (heads * chunks)), head = rest / chunks, c = rest % chunks * 8;
    T* from = x + ((i64)row * heads + head) * d + c;
    float a[8], b[8];
    load<8>(from, a);
    load<8>(from + half, b);
    if (head < h + hkv)
#pragma unroll
      for (int j = 0; j < 8; j++) rotate(cos, sin, (i64)row * half + c + j, a[j], b[j]);
    T* to = from;
    if (head >= h) to = (head < h + hkv ? keys + memory_index(place, row, head - h, d) : values + memory_index(place, row, head - h - hkv, d)) + c;
    store<8>(to, a);
    store<8>(to + half, b);
  }
}

// A row-wise RMS norm of rows of any width; a block makes one.
extern "C" __global__ void __launch_bounds__(256) norm_wide(const T* x, const T* weight, T* y, int d, float eps) {
  norms<1>(x + (i64)blockIdx.x * d, weight, y + (i64)blockIdx.x * d, d, eps);
}

// Adds a bias to every row of y, which is `stride` wide.
extern "C" __global__ void add_bias(T* y, const T* bias, i64 rows, int n, int stride) {
  for (i64 i = thread_index(); i < rows * n; i += thread_count()) {
    T* to = y + i / n * stride + i % n;
    *to = Narrow<T>::of(widen(*to) + widen(bias[i % n]));
  }
}
