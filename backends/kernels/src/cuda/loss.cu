// Cross-entropy: one block per row, one pass over the logits forward and one backward.

#define IGNORED 0xffffffffu

// Running maximum and sum of exponentials relative to it.
struct Running {
  float top, total;
  __device__ void add(float x) {
    if (x > top) {
      total = total * expf(top - x) + 1.f;
      top = x;
    } else {
      // The first value of a row of -inf must not give exp(-inf + inf); a NaN ends up in `total`.
      total += x == -infinity() ? 0.f : expf(x - top);
    }
  }
};

template <class T, int V>
__device__ float row_log_sum_exp(const T* x, i64 n) {
  Running state = {-infinity(), 0.f};
  float v[V];
  for (i64 i = (i64)threadIdx.x * V; i < n; i += (i64)blockDim.x * V) {
    load<V>(x + i, v);
#pragma unroll
    for (int j = 0; j < V; j++) state.add(v[j]);
  }
  float top = block_max(state.top);
  float total = block_sum(state.top == -infinity() ? state.total : state.total * expf(state.top - top));
  return top + logf(total);
}

// Writes each row's log-sum-exp and loss; a target outside the vocabulary makes the loss NaN.
template <class T>
__device__ void cross_entropy(const T* x, const u32* targets, float* lse, float* losses, i64 rows, i64 n) {
  const int N = Pack<T>::N;
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
    u32 target = targets[row];
    const T* xr = x + row * n;
    float value = 0.f, loss = 0.f;
    if (target != IGNORED) {
      value = n % N == 0 && aligned(x) ? row_log_sum_exp<T, N>(xr, n) : row_log_sum_exp<T, 1>(xr, n);
      loss = target < n ? value - widen(xr[target]) : __int_as_float(0x7fc00000);
    }
    if (threadIdx.x == 0) {
      lse[row] = value;
      losses[row] = loss;
    }
  }
}

#define ARGS(T) (const T* x, const u32* targets, float* lse, float* losses, i64 rows, i64 n)
FOR_TYPES(cross_entropy, ARGS, (x, targets, lse, losses, rows, n))
#undef ARGS

// Sum of all losses, by one block in a fixed order.
extern "C" __global__ void sum_losses(const float* losses, float* out, i64 n) {
  float total = 0.f;
  for (i64 i = threadIdx.x; i < n; i += blockDim.x) total += losses[i];
  total = block_sum(total);
  if (threadIdx.x == 0) *out = total;
}

template <class T, int V>
__device__ void row_gradient(const T* x, T* dx, i64 n, u32 target, float lse, float g) {
  float v[V];
  for (i64 i = (i64)threadIdx.x * V; i < n; i += (i64)blockDim.x * V) {
    if (target == IGNORED) {
#pragma unroll
      for (int j = 0; j < V; j++) v[j] = 0.f;
    } else {
      load<V>(x + i, v);
#pragma unroll
      for (int j = 0; j < V; j++) v[j] = (expf(v[j] - lse) - (i + j == target ? 1.f : 0.f)) * g;
    }
    store<V>(dx + i, v);
  }
}

template <class T>
__device__ void cross_entropy_backward(const T* x, const u32* targets, const float* lse, const float* g, T* dx, i64 rows,
                                       i64 n) {
  const int N = Pack<T>::N;
  bool packs = n % N == 0 && aligned(x) && aligned(dx);
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
    if (packs)
      row_gradient<T, N>(x + row * n, dx + row * n, n, targets[row], lse[row], *g);
    else
      row_gradient<T, 1>(x + row * n, dx + row * n, n, targets[row], lse[row], *g);
  }
}

#define ARGS(T) (const T* x, const u32* targets, const float* lse, const float* g, T* dx, i64 rows, i64 n)
FOR_TYPES(cross_entropy_backward, ARGS, (x, targets, lse, g, dx, rows, n))
#undef ARGS

// Loss of each row and, where `train` is set, the gradient of the sum of losses in place of the logits.
template <class T> __device__ void cross_entropy_in_place(T* x, const u32* targets, float* losses, i64 rows, i64 n, int train) {
  const int N = Pack<T>::N;
  bool packs = n % N == 0 && aligned(x);
  for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
    u32 target = targets[row];
    T* xr = x + row * n;
    float value = 0.f, at = 0.f;
    if (target != IGNORED) {
      // Read before any thread writes: the reductions in between are barriers.
      at = target < n ? widen(xr[target]) : __int_as_float(0x7fc00000);
      value = packs ? row_log_sum_exp<T, N>(xr, n) : row_log_sum_exp<T, 1>(xr, n);
    }
    if (threadIdx.x == 0) losses[row] = value - at;
    if (!train) continue;
    if (packs)
      row_gradient<T, N>(xr, xr, n, target, value, 1.f);
    else
      row_gradient<T, 1>(xr, xr, n, target, value, 1.f);
  }
}

#define ARGS(T) (T* x, const u32* targets, float* losses, i64 rows, i64 n, int train)
FOR_TYPES(cross_entropy_in_place, ARGS, (x, targets, losses, rows, n, train))
#undef ARGS
