// The backward pass's gradients of keys and values, by tiles of keys: every sum stays in the registers of one warp, in one
// order.
constexpr int M = 16 * R * W;

// Adds what the parts of a block hold to that of its first one, in order, through shared memory.
__device__ __forceinline__ void add_parts(float (&a)[R][D / 8][4], float (&b)[R][D / 8][4], float* shared) {
  int part = threadIdx.x / THREADS;
  shared += threadIdx.x % THREADS;
  for (int from = 1; from < S; from++) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < R * D / 2; i++)
      if (part == from) {
        shared[2 * i * THREADS] = a[i / (D / 2)][i / 4 % (D / 8)][i % 4];
        shared[(2 * i + 1) * THREADS] = b[i / (D / 2)][i / 4 % (D / 8)][i % 4];
      }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < R * D / 2; i++)
      if (part == 0) {
        a[i / (D / 2)][i / 4 % (D / 8)][i % 4] += shared[2 * i * THREADS];
        b[i / (D / 2)][i / 4 % (D / 8)][i % 4] += shared[(2 * i + 1) * THREADS];
      }
  }
}

// Gradients of keys and values: M keys per block against N positions of a query head at a time, so the scores are transposed
// and the sums over query rows stay in registers. S parts of the block take every S-th tile of positions each, and add up in
// the end. Grid: (key tiles, b * hkv).
extern "C" __global__ void __launch_bounds__(S * THREADS, BLOCKS)
    attention_keys(const T* q, const T* k, const T* v, const T* g, const float2* terms, T* dk, T* dv, const int* lengths,
                   Params p) {
  SHARED(memory);
  __shared__ float2 all_terms[S][2][N];
  int part = threadIdx.x / THREADS, warp = threadIdx.x % THREADS / 32, lane = threadIdx.x % 32, t = lane % 4;
  T *kt = (T*)memory, *vt = kt + M * STRIDE, *tiles = vt + M * STRIDE + part * 4 * N * STRIDE;
  T* scratch = vt + (M + S * 4 * N) * STRIDE + SCRATCH(part * W + warp, N);
  float2(*term)[N] = all_terms[part];
  Turn turn;
  int b = turn.head / p.hkv, kv = turn.head % p.hkv, heads = p.h / p.hkv;
  int key0 = turn.tile * M, count = min(M, p.tk - key0);
  const T *kb = k + b * p.ks[0] + kv * p.ks[1] + key0 * p.ks[2], *vb = v + b * p.vs[0] + kv * p.vs[1] + key0 * p.vs[2];
  const T *qb = q + b * p.qs[0] + kv * heads * p.qs[1], *gb = g + b * p.gs[0] + kv * heads * p.gs[1];
  const float2* tb = terms + ((i64)b * p.h + kv * heads) * p.tq;

  // Tiles of a head from the first one on whose positions see a key of this tile; none if nothing sees them.
  int start = p.causal ? max(0, key0 - p.offset) / N : 0, of_head = max(0, (p.tq + N - 1) / N - start);
  int steps = key0 < (lengths ? lengths[b] : p.tk) ? (heads * of_head + S - 1) / S : 0;
  auto load_positions = [&](int step) {
    int tile = step * S + part, head = tile / of_head, first = (start + tile % of_head) * N;
    int rows = head < heads ? p.tq - first : 0;
    T* to = tiles + step % 2 * 2 * N * STRIDE;
    load_rows<N>(to, qb + head * p.qs[1] + first * p.qs[2], p.qs[2], rows, p.d);
    load_rows<N>(to + N * STRIDE, gb + head * p.gs[1] + first * p.gs[2], p.gs[2], rows, p.d);
    int i = threadIdx.x % THREADS;
    if (i < N) copy_8(&term[step % 2][i], tb + head * p.tq + first + i, i < rows);
  };
  if (steps > 0) {
    if (part == 0) {
      load_rows<M>(kt, kb, p.ks[2], count, p.d);
      load_rows<M>(vt, vb, p.vs[2], count, p.d);
    }
    load_positions(0);
  }

  float dks[R][D / 8][4], dvs[R][D / 8][4], scale = p.scale * LOG2E;
  clear(dks);
  clear(dvs);
  for (int step = 0; step < steps; step++) {
    T *qt = tiles + step % 2 * 2 * N * STRIDE, *gt = qt + N * STRIDE;
    copied();
    __syncthreads();
    if (step + 1 < steps) load_positions(step + 1);
    float s[R][N / 8][4], ds[R][N / 8][4];
    clear(s);
    clear(ds);
    product_nt<N>(s, kt + warp * R * 16 * STRIDE, qt);
    product_nt<N>(ds, vt + warp * R * 16 * STRIDE, gt);
    // Later positions see no fewer keys, and what is behind the last one is zero.
    int first = (start + (step * S + part) % of_head) * N;
    bool masks = key0 + M > visible(p, lengths, b, first);
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int column = 8 * n + 2 * t + e;
        float2 own = term[step % 2][column];
        int seen = masks ? visible(p, lengths, b, first + column) : 0;
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
          for (int i = 0; i < 2; i++) {
            float &weight = s[r][n][2 * i + e], &to = ds[r][n][2 * i + e];
            weight = power_of_2(weight * scale - own.x);
            if (masks && key0 + (warp * R + r) * 16 + lane / 4 + 8 * i >= seen) weight = 0.f;
            to = weight * (to - own.y);
          }
      }
    product_nn<N>(dvs, s, gt, scratch);
    product_nn<N>(dks, ds, qt, scratch);
  }
  if (S > 1) add_parts(dks, dvs, (float*)tiles - part * 4 * N * STRIDE * (int)sizeof(T) / 4);
  if (part > 0) return;
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int key = key0 + (warp * R + r) * 16 + lane / 4 + 8 * i;
      store_row(dk + b * p.dks[0] + kv * p.dks[1] + key * p.dks[2], p.d, dks[r], i, p.scale, key < p.tk);
      store_row(dv + b * p.dvs[0] + kv * p.dvs[1] + key * p.dvs[2], p.d, dvs[r], i, 1.f, key < p.tk);
    }
}
