// What all ways of reading new positions behind remembered ones share.

typedef bf16 T;
typedef Pack<bf16> P8;

// Where new positions stand. Row r is position r % t of sequence r / t, the position there is `offset` + r % t, or, where
// there are lengths, the sequence's last; where there are rows, they tell each one's sequence and position. Strides of the
// memory [sequences, heads, room, d] are in elements.
struct Place {
  const u32* lengths;
  const uint2* rows;
  i64 sequence, head;
  int offset, t;
};

__device__ __forceinline__ i64 memory_index(const Place& p, int row, int head, int d) {
  if (p.rows) {
    uint2 at = p.rows[row];
    return at.x * p.sequence + head * p.head + (i64)at.y * d;
  }
  int b = row / p.t, t = row % p.t;
  int position = p.lengths ? (int)p.lengths[b] - 1 + t : p.offset + t;
  return b * p.sequence + head * p.head + (i64)position * d;
}

// Values of the two elements of a head that are rotated together, as they are stored.
__device__ __forceinline__ void rotate(float co, float si, float& a, float& b) {
  float first = a * co - b * si;
  b = b * co + a * si;
  a = first;
}

// As above; `angle` is their index in the tables.
__device__ __forceinline__ void rotate(const T* cos, const T* sin, i64 angle, float& a, float& b) {
  rotate(widen(cos[angle]), widen(sin[angle]), a, b);
}

struct Projections {
  const T *q, *k, *v, *q_bias, *k_bias, *v_bias;
};

// 16 bytes that this kernel reads once, past the first cache.
__device__ __forceinline__ uint4 load_once(const T* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// 16 bytes and two elements of what the kernel before this one wrote, past the first cache.
__device__ __forceinline__ uint4 load_new(const T* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
__device__ __forceinline__ u32 load_new_pair(const T* p) {
  u32 v;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

__device__ __forceinline__ void widen(uint4 from, float (&to)[8]) {
  u32 w[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    to[2 * i] = __uint_as_float(w[i] << 16);
    to[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
  }
}

// The RMS norm of a row of x to y, which may be in shared memory. P packs of a thread stay in registers.
template <int P> __device__ __forceinline__ void norm_packs(const T* x, const T* weight, T* y, int d, float eps) {
  uint4 v[P], w[P];
  float squares = 0.f, a[8], b[8];
#pragma unroll
  for (int i = 0; i < P; i++) {
    int c = (threadIdx.x + i * blockDim.x) * 8;
    v[i] = c < d ? load_new(x + c) : uint4{0, 0, 0, 0};
  }
#pragma unroll
  for (int i = 0; i < P; i++) {
    int c = (threadIdx.x + i * blockDim.x) * 8;
    if (c < d) w[i] = *(const uint4*)(weight + c);
  }
#pragma unroll
  for (int i = 0; i < P; i++) {
    widen(v[i], a);
#pragma unroll
    for (int j = 0; j < 8; j++) squares += a[j] * a[j];
  }
  float scale = rsqrtf(block_sum(squares) / d + eps);
#pragma unroll
  for (int i = 0; i < P; i++) {
    int c = (threadIdx.x + i * blockDim.x) * 8;
    if (c >= d) continue;
    widen(v[i], a);
    widen(w[i], b);
#pragma unroll
    for (int j = 0; j < 8; j++) a[j] = widen(Narrow<T>::of(a[j] * scale)) * b[j];
    store<8>(y + c, a);
  }
}

__device__ __forceinline__ void norm_row(const T* x, const T* weight, T* y, int d, float eps) {
  int packs = (d + 8 * blockDim.x - 1) / (8 * blockDim.x);
  if (packs == 1) return norm_packs<1>(x, weight, y, d, eps);
  if (packs == 2) return norm_packs<2>(x, weight, y, d, eps);
  if (packs <= 4) return norm_packs<4>(x, weight, y, d, eps);
  float squares = 0.f, v[8], w[8];
  for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
    widen(load_new(x + c), v);
#pragma unroll
    for (int j = 0; j < 8; j++) squares += v[j] * v[j];
  }
  float scale = rsqrtf(block_sum(squares) / d + eps);
  for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) {
    widen(load_new(x + c), v);
    load<8>(weight + c, w);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = widen(Narrow<T>::of(v[j] * scale)) * w[j];
    store<8>(y + c, v);
  }
}

// Orders (logit, id) by the logit, NaN above all, and equal ones by the smaller id; 0 is below all of them.
__device__ __forceinline__ u64 choice(float logit, int id) {
  u32 bits = logit == logit ? __float_as_uint(logit) : 0x7fffffffu;
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (u64)bits << 32 | (u32)~id;
}

__device__ __forceinline__ float silu(float x) { return x / (1.f + __expf(-x)); }
