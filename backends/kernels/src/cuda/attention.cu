// Attention for one element type T and one head size D (a multiple of 16; shorter heads are padded with zeros).
//
// All query heads that share a key head form one matrix of `group * tq` rows, row r being head r % group at position
// r / group. A warp owns 16 rows of a tile; its scores stay in registers in the fragment layout of mma.m16n8k16: lane
// l holds rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next one of every group of 8 columns.

struct Params {
  // Strides of batch, head, position: of the inputs, the output and its gradient, the gradients of the inputs.
  i64 qs[3], ks[3], vs[3], os[3], gs[3], dqs[3], dks[3], dvs[3];
  int h, hkv, tq, tk, d, causal, offset, splits, split_keys;
  float scale;
};

// Elements between rows of a tile: 16 bytes more than a row, so that the rows of a fragment fall into other banks.
#define STRIDE (D + 16 / (int)sizeof(T))
#define LOG2E 1.44269504f
#define LN2 0.69314718f

__device__ __forceinline__ int visible(const Params& p, const int* lengths, int b, int position) {
  int keys = lengths ? lengths[b] : p.tk;
  return p.causal ? min(keys, p.offset + position + 1) : keys;
}

// Query rows of a key head: row r is head r % size at position r / size.
struct Group {
  u32 size, inverse;  // ceil(2^32 / size): exact as long as size^2 tq stays below 2^32
  __device__ __forceinline__ Group(int n) : size(n), inverse(0xffffffffu / n + 1) {}
  __device__ __forceinline__ int position(int r) const { return size == 1 ? r : __umulhi(r, inverse); }
  __device__ __forceinline__ int head(int r) const { return r - position(r) * size; }
};

// Starts to copy `count` rows to a tile of `rows` rows, padded with zeros; `row(i)` is the address of row i. The tile is
// there once `copied` and a barrier have been passed.
template <class F> __device__ __forceinline__ void load_tile(T* tile, int rows, int count, int d, bool packs, F row) {
  const int N = Pack<T>::N, chunks = D / N;
#pragma unroll 4
  for (int i = threadIdx.x; i < rows * chunks; i += blockDim.x) {
    int r = i / chunks, c = i % chunks * N;
    if (packs) {
      bool valid = r < count && c < d;
      copy_16(tile + r * STRIDE + c, valid ? row(r) + c : row(0), valid);
    } else {
      Pack<T> pack;
#pragma unroll
      for (int j = 0; j < N; j++) pack.v[j] = r < count && c + j < d ? row(r)[c + j] : Narrow<T>::of(0.f);
      *(Pack<T>*)(tile + r * STRIDE + c) = pack;
    }
  }
}

__device__ __forceinline__ bool packable(const T* p, const i64* s, int d) {
  const int N = Pack<T>::N;
  return aligned(p) && d % N == 0 && s[0] % N == 0 && s[1] % N == 0 && s[2] % N == 0;
}

template <int N> __device__ __forceinline__ void clear(float (&c)[N][4]) {
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) c[i][e] = 0.f;
}

#ifdef WIDE
// float32: every lane computes its elements of the fragments from shared memory.

// c += a b^T for 16 rows of a tile and N rows of another.
template <int N> __device__ __forceinline__ void product_nt(float (&c)[N / 8][4], const T* a, const T* b) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int k = 0; k < D; k += 4) {
    float a0[4], a1[4], bv[4];
    load<4>(a + g * STRIDE + k, a0);
    load<4>(a + (g + 8) * STRIDE + k, a1);
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        load<4>(b + (8 * n + 2 * t + e) * STRIDE + k, bv);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          c[n][e] += a0[j] * bv[j];
          c[n][2 + e] += a1[j] * bv[j];
        }
      }
  }
}

// c += p b for the fragment p (16 x N) and N rows of a tile; `scratch` is this warp's 16 x (N + 1) elements.
template <int N>
__device__ __forceinline__ void product_nn(float (&c)[D / 8][4], const float (&p)[N / 8][4], const T* b, T* scratch) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < N / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) scratch[(g + e / 2 * 8) * (N + 1) + 8 * n + 2 * t + e % 2] = p[n][e];
  __syncwarp();
  for (int k = 0; k < N; k++) {
    float p0 = scratch[g * (N + 1) + k], p1 = scratch[(g + 8) * (N + 1) + k];
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float bv = b[k * STRIDE + 8 * n + 2 * t + e];
        c[n][e] += p0 * bv;
        c[n][2 + e] += p1 * bv;
      }
  }
}
#define SCRATCH(warps, N) ((warps) * 16 * ((N) + 1))
#else
// bf16: tensor cores.

template <int N> __device__ __forceinline__ void product_nt(float (&c)[N / 8][4], const T* a, const T* b) {
  int lane = threadIdx.x % 32;
  const T* pa = a + (lane & 15) * STRIDE + (lane >> 4) * 8;
  const T* pb = b + ((lane & 7) + (lane >> 4) * 8) * STRIDE + ((lane >> 3) & 1) * 8;
#pragma unroll
  for (int k = 0; k < D; k += 16) {
    u32 av[4], bv[4];
    load_matrices(av, pa + k);
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      load_matrices(bv, pb + n * STRIDE + k);
      mma(c[n / 8], av, bv[0], bv[1]);
      mma(c[n / 8 + 1], av, bv[2], bv[3]);
    }
  }
}

__device__ __forceinline__ u32 pair(float low, float high) {
  return (u32)round_to_bf16(low) | (u32)round_to_bf16(high) << 16;
}

template <int N>
__device__ __forceinline__ void product_nn(float (&c)[D / 8][4], const float (&p)[N / 8][4], const T* b, T*) {
  int lane = threadIdx.x % 32;
  const T* pb = b + (lane & 15) * STRIDE + (lane >> 4) * 8;
#pragma unroll
  for (int k = 0; k < N; k += 16) {
    const float(&left)[4] = p[k / 8];
    const float(&right)[4] = p[k / 8 + 1];
    u32 bv[4], av[4] = {pair(left[0], left[1]), pair(left[2], left[3]), pair(right[0], right[1]), pair(right[2], right[3])};
#pragma unroll
    for (int n = 0; n < D; n += 16) {
      load_matrices_transposed(bv, pb + k * STRIDE + n);
      mma(c[n / 8], av, bv[0], bv[1]);
      mma(c[n / 8 + 1], av, bv[2], bv[3]);
    }
  }
}
#define SCRATCH(warps, N) 0
#endif

// Stores columns c and c + 1 of a row of d elements.
__device__ __forceinline__ void store_pair(T* row, int c, int d, float low, float high) {
#ifndef WIDE
  if (c + 1 < d && ((u64)(row + c) & 3) == 0) {
    *(u32*)(row + c) = pair(low, high);
    return;
  }
#endif
  if (c < d) row[c] = Narrow<T>::of(low);
  if (c + 1 < d) row[c + 1] = Narrow<T>::of(high);
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// M rows per block (M / 16 warps) against N keys at a time. Grid: (row tiles, b * hkv, splits). With one split the
// result goes to `o` and `lse` ([b, h, tq]); with more, the unnormalised output, maximum (in units of
// log2) and sum of each split go to `acc`, `tops` and `totals`, for `attention_merge`.
extern "C" __global__ void __launch_bounds__(2 * M)
    attention_forward(const T* q, const T* k, const T* v, T* o, float* lse, float* acc, float* tops, float* totals,
                      const int* lengths, Params p) {
  SHARED(memory);
  T *qt = (T*)memory, *kt = qt + M * STRIDE, *vt = kt + N * STRIDE;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  T* scratch = vt + N * STRIDE + SCRATCH(warp, N);
  int b = blockIdx.y / p.hkv, kv = blockIdx.y % p.hkv, heads = p.h / p.hkv, rows = heads * p.tq;
  Group group(heads);
  int row0 = blockIdx.x * M, count = min(M, rows - row0);

  load_tile(qt, M, count, p.d, packable(q, p.qs, p.d), [&](int i) {
    int r = row0 + i;
    return q + b * p.qs[0] + (kv * heads + group.head(r)) * p.qs[1] + group.position(r) * p.qs[2];
  });
  int first = blockIdx.z * p.split_keys;
  int end = min(visible(p, lengths, b, group.position(row0 + count - 1)), first + p.split_keys);
  const T *kb = k + b * p.ks[0] + kv * p.ks[1], *vb = v + b * p.vs[0] + kv * p.vs[1];
  bool kpacks = packable(k, p.ks, p.d), vpacks = packable(v, p.vs, p.d);

  int row[2], seen[2];
  float top[2] = {-infinity(), -infinity()}, total[2] = {0.f, 0.f}, out[D / 8][4];
  clear(out);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    row[i] = row0 + warp * 16 + g + 8 * i;
    // A tile may reach into the keys of the next split.
    seen[i] = row[i] < rows ? min(visible(p, lengths, b, group.position(row[i])), first + p.split_keys) : 0;
  }
  float scale = p.scale * LOG2E;
  int least = __reduce_min_sync(0xffffffffu, min(seen[0], seen[1]));
  for (int n0 = first; n0 < end; n0 += N) {
    __syncthreads();
    load_tile(kt, N, end - n0, p.d, kpacks, [&](int i) { return kb + (n0 + i) * p.ks[2]; });
    load_tile(vt, N, end - n0, p.d, vpacks, [&](int i) { return vb + (n0 + i) * p.vs[2]; });
    copied();
    __syncthreads();
    float s[N / 8][4];
    clear(s);
    product_nt<N>(s, qt + warp * 16 * STRIDE, kt);
    float most[2] = {-infinity(), -infinity()};
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[n][e] *= scale;
        if (n0 + N > least && n0 + 8 * n + 2 * t + e % 2 >= seen[e / 2]) s[n][e] = -infinity();
        most[e / 2] = fmaxf(most[e / 2], s[n][e]);
      }
    float base[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float next = fmaxf(top[i], quad_max(most[i]));
      base[i] = next == -infinity() ? 0.f : next;
      float shrink = power_of_2(top[i] - base[i]);
      top[i] = next;
      total[i] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        out[n][2 * i] *= shrink;
        out[n][2 * i + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[n][e] = power_of_2(s[n][e] - base[e / 2]);
        total[e / 2] += s[n][e];
      }
    product_nn<N>(out, s, vt, scratch);
  }

#pragma unroll
  for (int i = 0; i < 2; i++) {
    total[i] = quad_sum(total[i]);
    if (row[i] >= rows) continue;
    int head = kv * heads + group.head(row[i]), position = group.position(row[i]);
    float inverse = total[i] > 0.f ? 1.f / total[i] : total[i];
    i64 index = ((i64)b * p.h + head) * p.tq + position;
    i64 partial = (i64)blockIdx.z * gridDim.y * rows + index;
    if (t == 0) {
      if (p.splits == 1) {
        lse[index] = total[i] == 0.f ? infinity() : top[i] * LN2 + logf(total[i]);
      } else {
        tops[partial] = top[i];
        totals[partial] = total[i];
      }
    }
    T* to = o + b * p.os[0] + head * p.os[1] + position * p.os[2];
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      int c = 8 * n + 2 * t;
      if (p.splits == 1) {
        store_pair(to, c, p.d, out[n][2 * i] * inverse, out[n][2 * i + 1] * inverse);
        continue;
      }
      if (c < p.d) acc[partial * p.d + c] = out[n][2 * i];
      if (c + 1 < p.d) acc[partial * p.d + c + 1] = out[n][2 * i + 1];
    }
  }
}

// Combines the splits; one warp per row.
extern "C" __global__ void attention_merge(const float* acc, const float* tops, const float* totals, T* o, float* lse,
                                           i64 rows, Params p) {
  int lane = threadIdx.x % 32;
  for (i64 r = thread_index() / 32; r < rows; r += thread_count() / 32) {
    int position = (int)(r % p.tq), head = (int)(r / p.tq % p.h);
    i64 b = r / p.tq / p.h;
    float top = -infinity(), total = 0.f;
    for (int s = 0; s < p.splits; s++) top = fmaxf(top, tops[s * rows + r]);
    float base = top == -infinity() ? 0.f : top;
    for (int s = 0; s < p.splits; s++) total += totals[s * rows + r] * power_of_2(tops[s * rows + r] - base);
    float inverse = total > 0.f ? 1.f / total : total;
    if (lane == 0) lse[r] = total == 0.f ? infinity() : top * LN2 + logf(total);
    for (int c = lane; c < p.d; c += 32) {
      float value = 0.f;
      for (int s = 0; s < p.splits; s++) value += acc[(s * rows + r) * p.d + c] * power_of_2(tops[s * rows + r] - base);
      o[b * p.os[0] + head * p.os[1] + position * p.os[2] + c] = Narrow<T>::of(value * inverse);
    }
  }
}

// delta[b, h, tq] = sum of o * g over the head; eight lanes per row.
extern "C" __global__ void attention_delta(const T* o, const T* g, float* delta, i64 rows, Params p) {
  const int N = Pack<T>::N;
  int lane = threadIdx.x % 8;
  u32 lanes = 0xffu << (threadIdx.x % 32 & 24);
  bool packs = packable(o, p.os, p.d) && packable(g, p.gs, p.d);
  for (i64 r = thread_index() / 8; r < rows; r += thread_count() / 8) {
    int position = (int)(r % p.tq), rest = (int)(r / p.tq), head = rest % p.h, b = rest / p.h;
    const T* orow = o + b * p.os[0] + head * p.os[1] + position * p.os[2];
    const T* grow = g + b * p.gs[0] + head * p.gs[1] + position * p.gs[2];
    float sum = 0.f, x[N], y[N];
    if (packs) {
      for (int c = lane * N; c < p.d; c += 8 * N) {
        load<N>(orow + c, x);
        load<N>(grow + c, y);
#pragma unroll
        for (int j = 0; j < N; j++) sum += x[j] * y[j];
      }
    } else {
      for (int c = lane; c < p.d; c += 8) sum += widen(orow[c]) * widen(grow[c]);
    }
#pragma unroll
    for (int i = 4; i > 0; i /= 2) sum += __shfl_xor_sync(lanes, sum, i);
    if (lane == 0) delta[r] = sum;
  }
}

// Gradient of the queries: the tiles of the forward pass. Grid: (row tiles, b * hkv).
extern "C" __global__ void __launch_bounds__(2 * M)
    attention_queries(const T* q, const T* k, const T* v, const T* g, const float* lse, const float* delta, T* dq,
                      const int* lengths, Params p) {
  SHARED(memory);
  T *qt = (T*)memory, *gt = qt + M * STRIDE, *kt = gt + M * STRIDE, *vt = kt + N * STRIDE;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
  T* scratch = vt + N * STRIDE + SCRATCH(warp, N);
  int b = blockIdx.y / p.hkv, kv = blockIdx.y % p.hkv, heads = p.h / p.hkv, rows = heads * p.tq;
  Group group(heads);
  int row0 = blockIdx.x * M, count = min(M, rows - row0);

  load_tile(qt, M, count, p.d, packable(q, p.qs, p.d), [&](int i) {
    int r = row0 + i;
    return q + b * p.qs[0] + (kv * heads + group.head(r)) * p.qs[1] + group.position(r) * p.qs[2];
  });
  load_tile(gt, M, count, p.d, packable(g, p.gs, p.d), [&](int i) {
    int r = row0 + i;
    return g + b * p.gs[0] + (kv * heads + group.head(r)) * p.gs[1] + group.position(r) * p.gs[2];
  });
  int end = visible(p, lengths, b, group.position(row0 + count - 1));
  const T *kb = k + b * p.ks[0] + kv * p.ks[1], *vb = v + b * p.vs[0] + kv * p.vs[1];
  bool kpacks = packable(k, p.ks, p.d), vpacks = packable(v, p.vs, p.d);

  int seen[2];
  i64 place[2];
  float base[2], shift[2], sum[D / 8][4];
  clear(sum);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int r = row0 + warp * 16 + lane / 4 + 8 * i;
    int head = kv * heads + group.head(r), position = group.position(r);
    i64 index = ((i64)b * p.h + head) * p.tq + position;
    place[i] = r < rows ? b * p.dqs[0] + head * p.dqs[1] + position * p.dqs[2] : -1;
    seen[i] = r < rows ? visible(p, lengths, b, position) : 0;
    base[i] = r < rows ? lse[index] * LOG2E : 0.f;
    shift[i] = r < rows ? delta[index] : 0.f;
  }
  float scale = p.scale * LOG2E;
  int least = __reduce_min_sync(0xffffffffu, min(seen[0], seen[1]));
  for (int n0 = 0; n0 < end; n0 += N) {
    __syncthreads();
    load_tile(kt, N, end - n0, p.d, kpacks, [&](int i) { return kb + (n0 + i) * p.ks[2]; });
    load_tile(vt, N, end - n0, p.d, vpacks, [&](int i) { return vb + (n0 + i) * p.vs[2]; });
    copied();
    __syncthreads();
    float s[N / 8][4], ds[N / 8][4];
    clear(s);
    clear(ds);
    product_nt<N>(s, qt + warp * 16 * STRIDE, kt);
    product_nt<N>(ds, gt + warp * 16 * STRIDE, vt);
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float weight = power_of_2(s[n][e] * scale - base[e / 2]);
        if (n0 + N > least && n0 + 8 * n + 2 * t + e % 2 >= seen[e / 2]) weight = 0.f;
        ds[n][e] = weight * (ds[n][e] - shift[e / 2]);
      }
    product_nn<N>(sum, ds, kt, scratch);
  }
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (place[i] >= 0)
        store_pair(dq + place[i], 8 * n + 2 * t, p.d, sum[n][2 * i] * p.scale, sum[n][2 * i + 1] * p.scale);
}

// Gradients of keys and values: M keys per block against B query rows at a time, so the scores are
// transposed and the sums over query rows stay in registers. Grid: (key tiles, b * hkv).
extern "C" __global__ void __launch_bounds__(2 * M, D == 128 ? 2 : D == 64 ? 3 : 4)
    attention_keys(const T* q, const T* k, const T* v, const T* g, const float* lse, const float* delta, T* dk, T* dv,
                   const int* lengths, Params p) {
  SHARED(memory);
  __shared__ float base[B], shift[B];
  __shared__ int seen[B];
  T *kt = (T*)memory, *vt = kt + M * STRIDE, *qt = vt + M * STRIDE, *gt = qt + B * STRIDE;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
  T* scratch = gt + B * STRIDE + SCRATCH(warp, B);
  int b = blockIdx.y / p.hkv, kv = blockIdx.y % p.hkv, heads = p.h / p.hkv, rows = heads * p.tq;
  Group group(heads);
  int key0 = blockIdx.x * M, count = min(M, p.tk - key0);

  const T *kb = k + b * p.ks[0] + kv * p.ks[1], *vb = v + b * p.vs[0] + kv * p.vs[1];
  load_tile(kt, M, count, p.d, packable(k, p.ks, p.d), [&](int i) { return kb + (key0 + i) * p.ks[2]; });
  load_tile(vt, M, count, p.d, packable(v, p.vs, p.d), [&](int i) { return vb + (key0 + i) * p.vs[2]; });
  bool qpacks = packable(q, p.qs, p.d), gpacks = packable(g, p.gs, p.d);

  float dks[D / 8][4], dvs[D / 8][4], scale = p.scale * LOG2E;
  clear(dks);
  clear(dvs);
  int last = lengths ? lengths[b] : p.tk;
  // The first row that sees a key of this tile, if any does.
  int start = p.causal ? max(0, key0 - p.offset) * heads / B * B : 0;
  for (int r0 = key0 < last ? start : rows; r0 < rows; r0 += B) {
    __syncthreads();
    load_tile(qt, B, rows - r0, p.d, qpacks, [&](int i) {
      int r = r0 + i;
      return q + b * p.qs[0] + (kv * heads + group.head(r)) * p.qs[1] + group.position(r) * p.qs[2];
    });
    load_tile(gt, B, rows - r0, p.d, gpacks, [&](int i) {
      int r = r0 + i;
      return g + b * p.gs[0] + (kv * heads + group.head(r)) * p.gs[1] + group.position(r) * p.gs[2];
    });
    for (int i = threadIdx.x; i < B; i += blockDim.x) {
      int r = r0 + i;
      i64 index = ((i64)b * p.h + kv * heads + group.head(r)) * p.tq + group.position(r);
      seen[i] = r < rows ? visible(p, lengths, b, group.position(r)) : 0;
      base[i] = r < rows ? lse[index] * LOG2E : 0.f;
      shift[i] = r < rows ? delta[index] : 0.f;
    }
    copied();
    __syncthreads();
    // Whether all of these rows see all of these keys: later rows see no fewer.
    bool whole = r0 + B <= rows && key0 + M <= seen[0];
    float s[B / 8][4], ds[B / 8][4];
    clear(s);
    clear(ds);
    product_nt<B>(s, kt + warp * 16 * STRIDE, qt);
    product_nt<B>(ds, vt + warp * 16 * STRIDE, gt);
#pragma unroll
    for (int n = 0; n < B / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int key = key0 + warp * 16 + lane / 4 + e / 2 * 8, r = 8 * n + 2 * t + e % 2;
        s[n][e] = power_of_2(s[n][e] * scale - base[r]);
        if (!whole && key >= seen[r]) s[n][e] = 0.f;
        ds[n][e] = s[n][e] * (ds[n][e] - shift[r]);
      }
    product_nn<B>(dvs, s, gt, scratch);
    product_nn<B>(dks, ds, qt, scratch);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int key = key0 + warp * 16 + lane / 4 + 8 * i;
    if (key >= p.tk) continue;
    T* to_k = dk + b * p.dks[0] + kv * p.dks[1] + key * p.dks[2];
    T* to_v = dv + b * p.dvs[0] + kv * p.dvs[1] + key * p.dvs[2];
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      int c = 8 * n + 2 * t;
      store_pair(to_k, c, p.d, dks[n][2 * i] * p.scale, dks[n][2 * i + 1] * p.scale);
      store_pair(to_v, c, p.d, dvs[n][2 * i], dvs[n][2 * i + 1]);
    }
  }
}
