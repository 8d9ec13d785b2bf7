// The same kernels for more positions, by the tensor cores. A block makes 16 G rows of weights times 8 NB positions, each
// of its warps over a part of the inner dimension; their sums meet in shared memory.
//
// The order of the inner dimension does not matter to a sum of products. Every lane therefore takes 8 consecutive elements
// of a row, which are the four pairs that it holds of two fragments of mma.m16n8k16.

constexpr int WARPS = 8, ROWS = 8 * NB;

// Sums of both rows of 8 G pairs: `row(p, i)` is the address of row i, 0 or 1, of pair p. They go to `sums`, that of row i
// of pair p and position r to sums[(2 p + i) ROWS + r].
// `ready()` is called once the kernels ahead have ended.
template <class F, class Ready>
__device__ __forceinline__ void tile(const T* x, int rows, int k, float* parts, float* sums, F row, Ready ready) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float c[G][NB][4];
  const T *first[G], *second[G];
#pragma unroll
  for (int j = 0; j < G; j++) {
    first[j] = row(8 * j + g, 0);
    second[j] = row(8 * j + g, 1);
#pragma unroll
    for (int n = 0; n < NB; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) c[j][n][e] = 0.f;
  }
  const uint4 zero = {0, 0, 0, 0};
  let_next_start();
  // The first of the weights come while the kernel ahead ends.
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int at = 32 * (warp + WARPS * i) + 8 * t;
#pragma unroll
    for (int j = 0; j < G; j++)
      if (at < k) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(first[j] + at));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(second[j] + at));
      }
  }
  wait_for_previous();
  ready();
#pragma unroll 4
  for (int from = 32 * warp; from < k; from += 32 * WARPS) {
    int at = from + 8 * t;
    bool inside = at < k;
    uint4 a[G], b[G];
#pragma unroll
    for (int j = 0; j < G; j++) {
      a[j] = inside ? *(const uint4*)(first[j] + at) : zero;
      b[j] = inside ? *(const uint4*)(second[j] + at) : zero;
    }
#pragma unroll
    for (int n = 0; n < NB; n++) {
      uint4 v = inside && 8 * n + g < rows ? *(const uint4*)(x + (i64)(8 * n + g) * k + at) : zero;
#pragma unroll
      for (int j = 0; j < G; j++) {
        unsigned low[4] = {a[j].x, b[j].x, a[j].y, b[j].y}, high[4] = {a[j].z, b[j].z, a[j].w, b[j].w};
        mma(c[j][n], low, v.x, v.y);
        mma(c[j][n], high, v.z, v.w);
      }
    }
  }
  const int SIZE = 16 * G * ROWS;
#pragma unroll
  for (int j = 0; j < G; j++)
#pragma unroll
    for (int n = 0; n < NB; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) parts[warp * SIZE + (2 * (8 * j + g) + e / 2) * ROWS + 8 * n + 2 * t + e % 2] = c[j][n][e];
  __syncthreads();
  for (int i = threadIdx.x; i < SIZE; i += blockDim.x) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += parts[w * SIZE + i];
    sums[i] = sum;
  }
  __syncthreads();
}

// Both kinds of sums in dynamic shared memory.
#define SUMS          \
  SHARED(memory);     \
  float* sums = (float*)memory; \
  float* parts = sums + 16 * G * ROWS

// q of the normalised rows x, rotated, to rows of stride `qs`; k, rotated, and v to the memory.
extern "C" __global__ void __launch_bounds__(256)
    attend_in_tile(const T* x, Projections w, T* q, T* keys, T* values, const T* cos, const T* sin, Place place, int rows,
                   int width, int qs, int h, int hkv, int d) {
  SUMS;
  int half = d / 2, pairs = (h + 2 * hkv) * half, from = blockIdx.x * 8 * G;
  auto kind = [&](int head) { return head < h ? 0 : head < h + hkv ? 1 : 2; };
  auto own = [&](int head) { return head < h ? head : head < h + hkv ? head - h : head - h - hkv; };
  tile(x, rows, width, parts, sums, [&](int p, int i) {
    int pair = min(from + p, pairs - 1), head = pair / half, of = kind(head);
    const T* weight = of == 0 ? w.q : of == 1 ? w.k : w.v;
    return weight + ((i64)own(head) * d + pair % half + i * half) * width;
  }, [] {});
  for (int j = threadIdx.x; j < 8 * G * ROWS; j += blockDim.x) {
    int p = j / ROWS, r = j % ROWS, pair = from + p, head = pair / half, i = pair % half, of = kind(head);
    if (r >= rows || pair >= pairs) continue;
    float a = sums[2 * p * ROWS + r], b = sums[(2 * p + 1) * ROWS + r];
    const T* bias = of == 0 ? w.q_bias : of == 1 ? w.k_bias : w.v_bias;
    int row = own(head) * d + i;
    if (bias) {
      a += widen(bias[row]);
      b += widen(bias[row + half]);
    }
    a = widen(Narrow<T>::of(a));
    b = widen(Narrow<T>::of(b));
    if (of < 2) rotate(cos, sin, (i64)r * half + i, a, b);
    T* to = of == 0 ? q + (i64)r * qs + row : (of == 1 ? keys : values) + memory_index(place, r, own(head), d) + i;
    to[0] = Narrow<T>::of(a);
    to[half] = Narrow<T>::of(b);
  }
}

// x += W y + bias for the matrix W [n, k].
extern "C" __global__ void __launch_bounds__(256)
    add_product_tile(T* x, const T* y, const T* weight, const T* bias, int rows, int n, int k) {
  SUMS;
  constexpr int PAIRS = 8 * G * ROWS, EACH = (PAIRS + 255) / 256;
  int from = blockIdx.x * 16 * G;
  // Pairs of x of this thread, asked for before the sums are made.
  u32 old[EACH];
  tile(
      y, rows, k, parts, sums, [&](int p, int i) { return weight + (i64)min(from + 2 * p + i, n - 1) * k; },
      [&] {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
          int j = threadIdx.x + 256 * i, p = j % (8 * G), r = j / (8 * G);
          old[i] = j < PAIRS && r < rows && from + 2 * p < n ? load_new_pair(x + (i64)r * n + from + 2 * p) : 0;
        }
      });
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    int j = threadIdx.x + 256 * i, p = j % (8 * G), r = j / (8 * G), column = from + 2 * p;
    if (j >= PAIRS || r >= rows || column >= n) continue;
    float a = __uint_as_float(old[i] << 16) + sums[2 * p * ROWS + r];
    float b = __uint_as_float(old[i] & 0xffff0000u) + sums[(2 * p + 1) * ROWS + r];
    if (bias) {
      a += widen(bias[column]);
      b += widen(bias[column + 1]);
    }
    *(u32*)(x + (i64)r * n + column) = (u32)round_to_bf16(a) | (u32)round_to_bf16(b) << 16;
  }
}

// y = silu(gate) up for the normalised rows x, m wide.
extern "C" __global__ void __launch_bounds__(256)
    gate_up_tile(const T* x, const T* gate, const T* up, const T* gate_bias, const T* up_bias, T* y, int rows, int width, int m) {
  SUMS;
  int from = blockIdx.x * 8 * G;
  tile(x, rows, width, parts, sums, [&](int p, int i) { return (i ? up : gate) + (i64)min(from + p, m - 1) * width; }, [] {});
  for (int j = threadIdx.x; j < 8 * G * ROWS; j += blockDim.x) {
    int p = j % (8 * G), r = j / (8 * G), column = from + p;
    if (r >= rows || column >= m) continue;
    float g = sums[2 * p * ROWS + r] + (gate_bias ? widen(gate_bias[column]) : 0.f);
    float u = sums[(2 * p + 1) * ROWS + r] + (up_bias ? widen(up_bias[column]) : 0.f);
    y[(i64)r * m + column] = Narrow<T>::of(silu(g) * u);
  }
}

// The largest `choice` of W x + bias for each of the normalised rows x; n rows of W.
extern "C" __global__ void __launch_bounds__(256)
    choose_tile(const T* x, const T* weight, const T* bias, u64* best, int rows, int n, int k) {
  SUMS;
  int from = blockIdx.x * 16 * G, lane = threadIdx.x % 32, id = from + lane;
  tile(x, rows, k, parts, sums, [&](int p, int i) { return weight + (i64)min(from + 2 * p + i, n - 1) * k; }, [] {});
  for (int r = threadIdx.x / 32; r < rows; r += WARPS) {
    u64 most = 0;
    if (lane < 16 * G && id < n) most = choice(sums[lane * ROWS + r] + (bias ? widen(bias[id]) : 0.f), id);
#pragma unroll
    for (int o = 16; o > 0; o /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, o));
    // Most blocks find a larger one there already.
    if (lane == 0 && most > *(volatile u64*)(best + r)) atomicMax(best + r, most);
  }
}
