// AdamW on float32 master weights, and sums of squares.

struct Factors {
  float decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, root, eps, scale;
};

__device__ __forceinline__ void adamw_one(float& p, float& m, float& v, float g, const Factors& c) {
  g *= c.scale;
  m = c.beta1 * m + c.one_minus_beta1 * g;
  v = c.beta2 * v + c.one_minus_beta2 * g * g;
  p = p * c.decay - c.step_size * m / (sqrtf(v) / c.root + c.eps);
}

template <class T> __device__ void adamw(float* p, float* m, float* v, const T* g, i64 n, Factors c) {
  for (i64 i = thread_index(); i < n; i += thread_count()) adamw_one(p[i], m[i], v[i], widen(g[i]), c);
}

#define ARGS(T) (float* p, float* m, float* v, const T* g, i64 n, Factors c)
FOR_TYPES(adamw, ARGS, (p, m, v, g, n, c))
#undef ARGS

const int BLOCKS = 4;  // that share a row of a table

// The step of many tensors at once: a row of `table` is p, m, v, g and the number of elements.
extern "C" __global__ void adamw_all(const u64* table, Factors c) {
  const u64* t = table + 5 * (blockIdx.x / BLOCKS);
  float *p = (float*)t[0], *m = (float*)t[1], *v = (float*)t[2];
  const float* g = (const float*)t[3];
  int n = (int)t[4], first = blockIdx.x % BLOCKS * blockDim.x + threadIdx.x, threads = BLOCKS * blockDim.x;
  int whole = aligned(p) && aligned(m) && aligned(v) && aligned(g) ? n / 4 * 4 : 0;
  for (int i = first * 4; i < whole; i += threads * 4) {
    Pack<float> pp = *(Pack<float>*)(p + i), mm = *(Pack<float>*)(m + i), vv = *(Pack<float>*)(v + i);
    Pack<float> gg = *(const Pack<float>*)(g + i);
#pragma unroll
    for (int j = 0; j < 4; j++) adamw_one(pp.v[j], mm.v[j], vv.v[j], gg.v[j], c);
    *(Pack<float>*)(p + i) = pp;
    *(Pack<float>*)(m + i) = mm;
    *(Pack<float>*)(v + i) = vv;
  }
  for (int i = whole + first; i < n; i += threads) adamw_one(p[i], m[i], v[i], g[i], c);
}

// One partial sum per block, added up in float64 by the host.
template <class T> __device__ void sum_of_squares(const T* x, float* part, i64 n, int block, int blocks) {
  const int N = Pack<T>::N;
  i64 whole = aligned(x) ? n / N * N : 0, first = (i64)block * blockDim.x + threadIdx.x, threads = (i64)blocks * blockDim.x;
  float total = 0.f, v[N];
  for (i64 i = first * N; i < whole; i += threads * N) {
    load<N>(x + i, v);
#pragma unroll
    for (int j = 0; j < N; j++) total += v[j] * v[j];
  }
  for (i64 i = whole + first; i < n; i += threads) total += widen(x[i]) * widen(x[i]);
  total = block_sum(total);
  if (threadIdx.x == 0) *part = total;
}

#define ARGS(T) (const T* x, float* parts, i64 n)
FOR_TYPES(sum_of_squares, ARGS, (x, parts + blockIdx.x, n, blockIdx.x, gridDim.x))
#undef ARGS

// The sums of many tensors at once: a row of `table` is x and the number of elements.
extern "C" __global__ void sum_of_squares_all(const u64* table, float* parts) {
  const u64* t = table + 2 * (blockIdx.x / BLOCKS);
  sum_of_squares((const float*)t[0], parts + blockIdx.x, (i64)t[1], blockIdx.x % BLOCKS, BLOCKS);
}
