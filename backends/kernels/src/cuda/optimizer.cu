// AdamW on float32 master weights, and sums of squares.

struct Factors {
  float decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, root, eps, scale;
};

template <class T> __device__ void adamw(float* p, float* m, float* v, const T* g, i64 n, Factors c) {
  for (i64 i = thread_index(); i < n; i += thread_count()) {
    float gi = widen(g[i]) * c.scale;
    float mi = c.beta1 * m[i] + c.one_minus_beta1 * gi;
    float vi = c.beta2 * v[i] + c.one_minus_beta2 * gi * gi;
    m[i] = mi;
    v[i] = vi;
    p[i] = p[i] * c.decay - c.step_size * mi / (sqrtf(vi) / c.root + c.eps);
  }
}

#define ARGS(T) (float* p, float* m, float* v, const T* g, i64 n, Factors c)
FOR_TYPES(adamw, ARGS, (p, m, v, g, n, c))
#undef ARGS

// The step of many tensors at once: a row of `table` is p, m, v, g and the number of elements. Grid: blocks, tensors.
extern "C" __global__ void adamw_all(const u64* table, Factors c) {
  const u64* t = table + 5 * blockIdx.y;
  adamw((float*)t[0], (float*)t[1], (float*)t[2], (const float*)t[3], (i64)t[4], c);
}

// One partial sum per block, added up in float64 by the host.
template <class T> __device__ void sum_of_squares(const T* x, float* parts, i64 n) {
  const int N = Pack<T>::N;
  i64 whole = aligned(x) ? n / N * N : 0;
  float total = 0.f, v[N];
  for (i64 i = thread_index() * N; i < whole; i += thread_count() * N) {
    load<N>(x + i, v);
#pragma unroll
    for (int j = 0; j < N; j++) total += v[j] * v[j];
  }
  for (i64 i = whole + thread_index(); i < n; i += thread_count()) total += widen(x[i]) * widen(x[i]);
  total = block_sum(total);
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

#define ARGS(T) (const T* x, float* parts, i64 n)
FOR_TYPES(sum_of_squares, ARGS, (x, parts, n))
#undef ARGS

// The sums of many tensors at once: a row of `table` is x and the number of elements. Grid: parts, tensors.
extern "C" __global__ void sum_of_squares_all(const u64* table, float* parts) {
  const u64* t = table + 2 * blockIdx.y;
  sum_of_squares((const float*)t[0], parts + (i64)blockIdx.y * gridDim.x, (i64)t[1]);
}
