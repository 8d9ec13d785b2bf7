// The backward pass's gradient of the queries, by tiles of rows: every sum stays in the registers of one warp.
constexpr int M = 16 * R * W;

// The sum of o * g over a row of d elements; four lanes call it for a row.
__device__ __forceinline__ float quad_dot(const T* o, const T* g, int d) {
  const int V = Pack<T>::N;
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < D; j += 4 * V) {
    int c = j + threadIdx.x % 4 * V;
    if (PACKED && c < d) {
      float x[V], y[V];
      load<V>(o + c, x);
      load<V>(g + c, y);
#pragma unroll
      for (int e = 0; e < V; e++) sum += x[e] * y[e];
    } else {
      for (int e = c; e < min(d, c + V); e++) sum += widen(o[e]) * widen(g[e]);
    }
  }
  return quad_sum(sum);
}

// Gradient of the queries: M rows per block against N keys at a time. Grid: (row tiles, b * hkv). Leaves for
// `attention_keys` terms[b, h, tq]: the log-sum-exp in units of log2, and the sum of o * g over the head.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_queries(const T* q, const T* k, const T* v, const T* o, const T* g, const float* lse, float2* terms, T* dq,
                      const int* lengths, Params p) {
  SHARED(memory);
  T *qt = (T*)memory, *gt = qt + M * STRIDE, *tiles = gt + M * STRIDE;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
  T* scratch = tiles + 4 * N * STRIDE + SCRATCH(warp, N);
  Turn turn;
  int b = turn.head / p.hkv, kv = turn.head % p.hkv, heads = p.h / p.hkv, rows = heads * p.tq;
  Group group(heads);
  // The last rows see the most keys, and start first.
  int row0 = (gridDim.x - 1 - turn.tile) * M, count = min(M, rows - row0);
  int end = visible(p, lengths, b, group.position(row0 + count - 1));
  const T *kb = k + b * p.ks[0] + kv * p.ks[1], *vb = v + b * p.vs[0] + kv * p.vs[1];
  auto load_keys = [&](int n0, T* to) {
    load_rows<N>(to, kb + n0 * p.ks[2], p.ks[2], end - n0, p.d);
    load_rows<N>(to + N * STRIDE, vb + n0 * p.vs[2], p.vs[2], end - n0, p.d);
  };

  load_tile<M>(qt, q, count, p.d, [&](int i) { return place(group, p.qs, b, kv, row0 + i); });
  load_tile<M>(gt, g, count, p.d, [&](int i) { return place(group, p.gs, b, kv, row0 + i); });
  if (end > 0) load_keys(0, tiles);

  int seen[R][2], least = end;
  float2 term[R][2];
  float sum[R][D / 8][4];
  clear(sum);
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int own = row0 + (warp * R + r) * 16 + lane / 4 + 8 * i, row = min(own, rows - 1), position = group.position(row);
      i64 index = ((i64)b * p.h + kv * heads + group.head(row)) * p.tq + position;
      seen[r][i] = own < rows ? visible(p, lengths, b, position) : 0;
      const T *of = o + place(group, p.os, b, kv, row), *gf = g + place(group, p.gs, b, kv, row);
      term[r][i] = make_float2(lse[index] * LOG2E, quad_dot(of, gf, p.d));
      if (own < rows && t == 0) terms[index] = term[r][i];
      least = min(least, seen[r][i]);
    }
  least = __reduce_min_sync(0xffffffffu, least);

  float scale = p.scale * LOG2E;
  int odd = 0;
  for (int n0 = 0; n0 < end; n0 += N, odd ^= 1) {
    T *kt = tiles + odd * 2 * N * STRIDE, *vt = kt + N * STRIDE;
    copied();
    __syncthreads();
    if (n0 + N < end) load_keys(n0 + N, tiles + (odd ^ 1) * 2 * N * STRIDE);
    float s[R][N / 8][4], ds[R][N / 8][4];
    clear(s);
    clear(ds);
    product_nt<N>(s, qt + warp * R * 16 * STRIDE, kt);
    product_nt<N>(ds, gt + warp * R * 16 * STRIDE, vt);
    bool masks = n0 + N > least;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          float weight = power_of_2(s[r][n][e] * scale - term[r][e / 2].x);
          if (masks && n0 + 8 * n + 2 * t + e % 2 >= seen[r][e / 2]) weight = 0.f;
          ds[r][n][e] = weight * (ds[r][n][e] - term[r][e / 2].y);
        }
    product_nn<N>(sum, ds, kt, scratch);
  }
  copied();
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int row = row0 + (warp * R + r) * 16 + lane / 4 + 8 * i;
      store_row(dq + place(group, p.dqs, b, kv, row), p.d, sum[r], i, p.scale, row < rows);
    }
}
