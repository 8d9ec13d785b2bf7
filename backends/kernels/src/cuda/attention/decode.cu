// Attention of a few query rows to many keys, in bf16: bound by reading the keys and values, which go from memory straight
// into fragments of mma.m16n8k16. A warp takes 16 keys at a time; the query rows of a key head, at most 8 Q of them, are the
// columns. Head sizes are multiples of 8, rows and addresses of 16 bytes.
//
// Which element of a head stands where in a fragment is free as long as both factors agree: it is chosen so that a lane
// (g = lane / 4, t = lane % 4) reads 16 bytes. Of the 32 elements from 32 c on of a key it holds 8 t .. 8 t + 7, of the 64
// from 64 c on of a value 8 g .. 8 g + 7.
//
// The blocks of a cluster share the keys of one key head, and combine their results through each other's shared memory.

const int KC = D / 32, VC = D / 64;
#if CLUSTER > 1
#define CLUSTERED __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERED
#endif

__device__ __forceinline__ uint4 load_16(const T* p, bool valid) {
  return valid ? *(const uint4*)p : make_uint4(0, 0, 0, 0);
}

// Weight of a part whose largest score is `top` among parts whose largest is `most`.
__device__ __forceinline__ float share(float top, float most) {
  return most == -infinity() ? 0.f : power_of_2(top - most);
}

template <int M> __device__ __forceinline__ void clear(float (&c)[M][4][4]) {
#pragma unroll
  for (int i = 0; i < 16 * M; i++) c[i / 16][i / 4 % 4][i % 4] = 0.f;
}

// Element c of row r out of the sum of weighted values and the sum of weights, and its log-sum-exp.
__device__ __forceinline__ void finish(T* o, float* lse, const Group& group, const Params& p, int b, int kv, int r, int c,
                                       float top, float total, float sum) {
  if (c < p.d) o[place(group, p.os, b, kv, r) + c] = Narrow<T>::of(total > 0.f ? sum / total : total);
  if (c > 0 || !lse) return;
  i64 index = ((i64)b * p.h + kv * (int)group.size + group.head(r)) * p.tq + group.position(r);
  lse[index] = total == 0.f ? infinity() : top * LN2 + logf(total);
}

// Grid: (CLUSTER, b * hkv), W warps. `p.split_keys` are the fewest keys worth a block of their own, so a cluster chosen for
// more keys than there are does no harm. `lse` ([b, h, tq]) may be null.
extern "C" __global__ void __launch_bounds__(32 * W) CLUSTERED
    attention_decode(const T* q, const T* k, const T* v, T* o, float* lse, const int* lengths, Params p) {
  SHARED(memory);
  __shared__ float warp_top[W][8 * Q], warp_total[W][8 * Q], block_top[8 * Q], block_total[8 * Q];
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  int b = blockIdx.y / p.hkv, kv = blockIdx.y % p.hkv, heads = p.h / p.hkv, rows = heads * p.tq;
  Group group(heads);
  int keys = visible(p, lengths, b, p.tq - 1), hidden = p.window > 0 ? max(0, keys - p.window) : 0;

  uint4 qf[Q][KC];
#pragma unroll
  for (int n = 0; n < Q; n++) {
    int r = 8 * n + g;
    const T* row = q + (r < rows ? place(group, p.qs, b, kv, r) : 0);
#pragma unroll
    for (int c = 0; c < KC; c++) qf[n][c] = load_16(row + 32 * c + 8 * t, r < rows && 32 * c + 8 * t < p.d);
  }

  // As many parts as are worth it, of whole steps of a warp.
  int parts = max(1, min(CLUSTER, (keys - hidden + p.split_keys - 1) / p.split_keys));
  if (blockIdx.x >= parts) return;
  int size = ((keys - hidden + parts - 1) / parts + 15) / 16 * 16;
  int first = hidden + blockIdx.x * size, end = min(keys, first + size);
  int seen[Q][2];
#pragma unroll
  for (int n = 0; n < Q; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int r = 8 * n + 2 * t + i;
      seen[n][i] = r < rows ? min(end, visible(p, lengths, b, group.position(r))) : 0;
    }
  const T *kb = k + b * p.ks[0] + kv * p.ks[1] + 8 * t, *vb = v + b * p.vs[0] + kv * p.vs[1] + 8 * g;
  float scale = p.scale * LOG2E, top[Q][2], total[Q][2], out[Q][VC][4][4];
#pragma unroll
  for (int n = 0; n < Q; n++) {
    clear(out[n]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      top[n][i] = -infinity();
      total[n][i] = 0.f;
    }
  }

  for (int n0 = first + 16 * warp; n0 < end; n0 += 16 * W) {
    uint4 kf[2][KC], vf[4][VC];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int c = 0; c < KC; c++) {
        int key = n0 + g + 8 * i;
        kf[i][c] = load_16(kb + key * p.ks[2] + 32 * c, key < end && 32 * c + 8 * t < p.d);
      }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int c = 0; c < VC; c++) {
        int key = n0 + 2 * t + i % 2 + i / 2 * 8;
        vf[i][c] = load_16(vb + key * p.vs[2] + 64 * c, key < end && 64 * c + 8 * g < p.d);
      }
    u32 weights[Q][2];
#pragma unroll
    for (int n = 0; n < Q; n++) {
      float s[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int c = 0; c < KC; c++) {
        const uint4 &a = kf[0][c], &b = kf[1][c];
        u32 low[4] = {a.x, b.x, a.y, b.y}, high[4] = {a.z, b.z, a.w, b.w};
        mma(s, low, qf[n][c].x, qf[n][c].y);
        mma(s, high, qf[n][c].z, qf[n][c].w);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float low = n0 + g < seen[n][i] ? s[i] * scale : -infinity();
        float high = n0 + g + 8 < seen[n][i] ? s[2 + i] * scale : -infinity();
        float most = fmaxf(low, high);
#pragma unroll
        for (int j = 4; j < 32; j *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, j));
        most = fmaxf(most, top[n][i]);
        float shrink = share(top[n][i], most);
        top[n][i] = most;
        s[i] = share(low, most);
        s[2 + i] = share(high, most);
        total[n][i] = total[n][i] * shrink + s[i] + s[2 + i];
#pragma unroll
        for (int c = 0; c < VC; c++)
#pragma unroll
          for (int j = 0; j < 4; j++) {
            out[n][c][j][i] *= shrink;
            out[n][c][j][2 + i] *= shrink;
          }
      }
      weights[n][0] = transposed(pair(s[0], s[1]));
      weights[n][1] = transposed(pair(s[2], s[3]));
    }
#pragma unroll
    for (int c = 0; c < VC; c++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        u32 a = (&vf[0][c].x)[j], b = (&vf[1][c].x)[j], x = (&vf[2][c].x)[j], y = (&vf[3][c].x)[j];
        u32 av[4] = {__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632), __byte_perm(x, y, 0x5410),
                     __byte_perm(x, y, 0x7632)};
#pragma unroll
        for (int n = 0; n < Q; n++) mma(out[n][c][j], av, weights[n][0], weights[n][1]);
      }
  }

  // The warps' results, on the way to one: out[c][j][i] is element 64 c + 8 g + 2 j + i / 2 of row 8 n + 2 t + i % 2.
  float* sums = (float*)memory;
#pragma unroll
  for (int n = 0; n < Q; n++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int j = 4; j < 32; j *= 2) total[n][i] += __shfl_xor_sync(0xffffffffu, total[n][i], j);
      int r = 8 * n + 2 * t + i;
      if (g == 0) {
        warp_top[warp][r] = top[n][i];
        warp_total[warp][r] = total[n][i];
      }
      if (r >= rows) continue;
#pragma unroll
      for (int c = 0; c < VC; c++) {
        float4* to = (float4*)(sums + (warp * rows + r) * D + 64 * c + 8 * g);
        to[0] = make_float4(out[n][c][0][i], out[n][c][0][2 + i], out[n][c][1][i], out[n][c][1][2 + i]);
        to[1] = make_float4(out[n][c][2][i], out[n][c][2][2 + i], out[n][c][3][i], out[n][c][3][2 + i]);
      }
    }
  __syncthreads();

  for (int i = threadIdx.x; i < rows * D; i += 32 * W) {
    int r = i / D, c = i % D;
    float most = -infinity(), sum = 0.f, all = 0.f;
#pragma unroll
    for (int w = 0; w < W; w++) most = fmaxf(most, warp_top[w][r]);
#pragma unroll
    for (int w = 0; w < W; w++) {
      float weight = share(warp_top[w][r], most);
      sum += weight * sums[(w * rows + r) * D + c];
      all += weight * warp_total[w][r];
    }
    if (parts == 1) {
      finish(o, lse, group, p, b, kv, r, c, most, all, sum);
      continue;
    }
    // No other thread reads this element.
    sums[i] = sum;
    if (c == 0) {
      block_top[r] = most;
      block_total[r] = all;
    }
  }
#if CLUSTER > 1
  if (parts == 1) return;
  cluster_barrier();
  if (blockIdx.x == 0) {
    for (int i = threadIdx.x; i < rows * D; i += 32 * W) {
      int r = i / D, c = i % D;
      float top[CLUSTER], most = -infinity(), sum = 0.f, all = 0.f;
#pragma unroll
      for (int s = 0; s < CLUSTER; s++) {
        top[s] = s < parts ? load_of(block_top + r, s) : -infinity();
        most = fmaxf(most, top[s]);
      }
#pragma unroll
      for (int s = 0; s < CLUSTER; s++) {
        if (s >= parts) break;
        float weight = share(top[s], most);
        sum += weight * load_of(sums + i, s);
        all += weight * load_of(block_total + r, s);
      }
      finish(o, lse, group, p, b, kv, r, c, most, all, sum);
    }
  }
  // A block's shared memory is read until here.
  cluster_barrier();
#endif
}
