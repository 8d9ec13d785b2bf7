// What stands between the products of many new positions, and around those of all layers.

// For many rows, whose products are made elsewhere: the rotation of q in place, and of k on its way to the memory, where
// v goes as well. Rows of x are [q | k | v].
extern "C" __global__ void remember(T* x, T* keys, T* values, const T* cos, const T* sin, Place place, int rows, int h,
                                    int hkv, int d) {
  int half = d / 2, chunks = half / 8, heads = h + 2 * hkv;
  let_next_start();
  wait_for_previous();
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
extern "C" __global__ void __launch_bounds__(512) norm_rows(const T* x, const T* weight, T* y, int d, float eps) {
  let_next_start();
  wait_for_previous();
  norm_row(x + (i64)blockIdx.x * d, weight, y + (i64)blockIdx.x * d, d, eps);
}

// The largest `choice` of each row of logits, n wide. Grid: parts of a row, rows.
extern "C" __global__ void __launch_bounds__(256) choose_rows(const float* logits, const T* bias, u64* best, int n) {
  __shared__ u64 own;
  let_next_start();
  wait_for_previous();
  if (threadIdx.x == 0) own = 0;
  __syncthreads();
  u64 most = 0;
  for (i64 i = thread_index(); i < n; i += thread_count()) {
    float logit = __ldcg(logits + (i64)blockIdx.y * n + i) + (bias ? widen(bias[i]) : 0.f);
    most = max(most, choice(logit, (int)i));
  }
#pragma unroll
  for (int o = 16; o > 0; o /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, o));
  if (threadIdx.x % 32 == 0) atomicMax(&own, most);
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(best + blockIdx.y, own);
}

// The first and the last kernel of a step of several sequences that are written greedily. A block each for a sequence:
// x is the embedding of its last token, cos and sin are those of its new position, the last of `lengths`.
extern "C" __global__ void step_begin(const T* embed, const u32* tokens, const u32* lengths, const T* all_cos, const T* all_sin,
                                      T* x, T* cos, T* sin, u64* best, int d, int half) {
  int row = blockIdx.x, position = (int)lengths[row] - 1;
  const T* from = embed + (i64)tokens[row] * d;
  for (int c = threadIdx.x * 8; c < d; c += blockDim.x * 8) *(uint4*)(x + (i64)row * d + c) = load_once(from + c);
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    cos[row * half + i] = all_cos[(i64)position * half + i];
    sin[row * half + i] = all_sin[(i64)position * half + i];
  }
  if (threadIdx.x == 0) best[row] = 0;
}

// The chosen tokens, and their way to the host: entry `step % ring` of `out` [ring, rows] is the step's number, counted
// from 1, above the token, which is all ones where the logit is not finite.
extern "C" __global__ void step_end(u32* tokens, u32* lengths, const u64* best, u32* step, volatile u64* out, int rows, int ring) {
  let_next_start();
  wait_for_previous();
  u32 number = *step;
  __syncthreads();
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    u64 key = best[row];
    u32 bits = (u32)(key >> 32), token = ~(u32)key;
    // The ordered bits of numbers between the infinities.
    bool finite = bits > 0x007fffffu && bits < 0xff800000u;
    tokens[row] = finite ? token : 0;
    lengths[row] += 1;
    out[(i64)(number % ring) * rows + row] = (u64)(number + 1) << 32 | (finite ? token : 0xffffffffu);
  }
  if (threadIdx.x == 0) *step = number + 1;
}

// Adds a bias to every row of y, which is `stride` wide.
extern "C" __global__ void add_bias(T* y, const T* bias, i64 rows, int n, int stride) {
  for (i64 i = thread_index(); i < rows * n; i += thread_count()) {
    T* to = y + i / n * stride + i % n;
    *to = Narrow<T>::of(widen(*to) + widen(bias[i % n]));
  }
}
