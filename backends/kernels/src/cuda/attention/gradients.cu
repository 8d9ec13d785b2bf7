// The backward pass by products of warpgroups, for heads whose size D is 64 or 128. A block is one warpgroup with 64 rows of its own, of
// queries or of keys, against 64 of the others at a time, of which the next ones are on their way while these are used. Every sum stays in
// registers, in one order. All copies are boxes of 64 rows and columns, swizzled.

struct Gradients {
  int t, padded, h, hkv, causal;  // positions, those that `terms` has room for, heads, and whether what stands behind a position is hidden
  int os, gs, ds;                 // elements from a position to the next: of the output, its gradient, and the gradients of the inputs
  float scale;                    // positive
};

constexpr int ROWS = 64, BOX = ROWS * 128, BOXES = D / 64, TILE = BOXES * BOX;

// 64 positions of a head.
__device__ __forceinline__ void load_head(unsigned char* to, const TensorMap* map, u64* barrier, int head, int row, int b) {
#pragma unroll
  for (int i = 0; i < BOXES; i++) load_box(to + i * BOX, map, barrier, head * D + 64 * i, row, b);
}

// c = a b^T of two heads, queued.
__device__ __forceinline__ void start_scores(float (&c)[8][4], const unsigned char* a, const unsigned char* b) {
#pragma unroll
  for (int j = 0; j < D / 16; j++)
    wgmma(c, tile_of(a + j / 4 * BOX + j % 4 * 32, 16, 1024), tile_of(b + j / 4 * BOX + j % 4 * 32, 16, 1024), j > 0);
  wgmma_queued();
}

// sum += a b for the 64 x 64 weights a, queued.
__device__ __forceinline__ void start_sum(float (&sum)[D / 8][4], const u32 (&a)[4][4], const unsigned char* b) {
#pragma unroll
  for (int j = 0; j < 4; j++) wgmma_turned(sum, a[j], tile_of(b + j * 2048, BOX, 1024), 1);
  wgmma_queued();
}

// Rounded, as the left side of a product.
__device__ __forceinline__ void round_all(u32 (&to)[4][4], const float (&x)[8][4]) {
#pragma unroll
  for (int n = 0; n < 8; n++)
#pragma unroll
    for (int r = 0; r < 2; r++) to[n / 2][n % 2 * 2 + r] = pair(x[n][2 * r], x[n][2 * r + 1]);
}

// Stores this lane's rows of a sum, times `factor`: row i of 64 goes to `to + i * stride`, where i < rows.
__device__ __forceinline__ void store_sum(bf16* to, int stride, const float (&sum)[D / 8][4], float factor, int rows) {
  int lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int row = threadIdx.x / 32 * 16 + lane / 4 + 8 * r;
#pragma unroll
    for (int n = 0; n < D / 8; n += 4) {
      u32 x[4];
#pragma unroll
      for (int j = 0; j < 4; j++) x[j] = pair(sum[n + j][2 * r] * factor, sum[n + j][2 * r + 1] * factor);
      transpose_quad(x);
      if (row < rows) *(uint4*)(to + (i64)row * stride + 8 * (n + t)) = make_uint4(x[0], x[1], x[2], x[3]);
    }
  }
}

__device__ __forceinline__ void clear(float (&sum)[D / 8][4]) {
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) sum[n][e] = 0.f;
}

// The sum of o * g over a head of a position; four lanes call it.
__device__ __forceinline__ float quad_dot(const bf16* o, const bf16* g) {
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < D; j += 32) {
    float x[8], y[8];
    load<8>(o + j + threadIdx.x % 4 * 8, x);
    load<8>(g + j + threadIdx.x % 4 * 8, y);
#pragma unroll
    for (int e = 0; e < 8; e++) sum += x[e] * y[e];
  }
  return quad_sum(sum);
}

// Gradient of the queries. Grid: (tiles of positions, b * h). Leaves for `attention_keys_64` terms[b, h, padded]: the log-sum-exp in units of
// log2, and the sum of o * g over the head; infinity and zero where there is no position.
extern "C" __global__ void __launch_bounds__(128, QUERY_BLOCKS)
    attention_queries_64(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                         const __grid_constant__ TensorMap g, const bf16* o, const bf16* gradient, const float* lse, float2* terms, bf16* dq,
                         const int* lengths, Gradients p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ u64 ready_q, ready[2];
  unsigned char *qt = memory, *gt = qt + TILE, *tiles = gt + TILE;
  // The last rows see the most keys, and start first.
  int head = blockIdx.y % p.h, b = blockIdx.y / p.h, row0 = (gridDim.x - 1 - blockIdx.x) * ROWS, kv = head / (p.h / p.hkv);
  int keys = lengths ? min(lengths[b], p.t) : p.t, end = p.causal ? min(keys, row0 + ROWS) : keys, steps = (end + ROWS - 1) / ROWS;
  if (threadIdx.x == 0) {
    barrier_init(&ready_q, 1);
    barrier_init(ready, 1);
    barrier_init(ready + 1, 1);
    barriers_ready();
  }
  __syncthreads();
  auto load_keys = [&](int step) {
    unsigned char* to = tiles + (step & 1) * 2 * TILE;
    u64* barrier = ready + (step & 1);
    barrier_expect(barrier, 2 * TILE);
    load_head(to, &k, barrier, kv, step * ROWS, b);
    load_head(to + TILE, &v, barrier, kv, step * ROWS, b);
  };
  if (threadIdx.x == 0 && steps > 0) {
    barrier_expect(&ready_q, 2 * TILE);
    load_head(qt, &q, &ready_q, head, row0, b);
    load_head(gt, &g, &ready_q, head, row0, b);
    load_keys(0);
    if (steps > 1) load_keys(1);
  }

  int lane = threadIdx.x % 32, t = lane % 4, row = row0 + threadIdx.x / 32 * 16 + lane / 4;
  float2 term[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int own = row + 8 * r, at = min(own, p.t - 1);
    i64 position = (i64)b * p.t + at, of_head = (i64)b * p.h + head;
    float dot = quad_dot(o + position * p.os + head * D, gradient + position * p.gs + head * D);
    term[r] = own < p.t ? make_float2(lse[of_head * p.t + at] * 1.44269504f, dot) : make_float2(infinity(), 0.f);
    if (t == 0) terms[of_head * p.padded + own] = term[r];
  }

  float sum[D / 8][4], scale = p.scale * 1.44269504f;
  clear(sum);
  if (steps > 0) barrier_wait(&ready_q, 0);
  for (int step = 0; step < steps; step++) {
    int n0 = step * ROWS;
    unsigned char *kt = tiles + (step & 1) * 2 * TILE, *vt = kt + TILE;
    barrier_wait(ready + (step & 1), step >> 1 & 1);
    float s[8][4], ds[8][4];
    wgmma_begin();
    start_scores(s, qt, kt);
    start_scores(ds, gt, vt);
    wgmma_done<1>();
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) s[n][e] = power_of_2(s[n][e] * scale - term[e / 2].x);
    wgmma_done<0>();
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) ds[n][e] = s[n][e] * (ds[n][e] - term[e / 2].y);
    if (n0 + ROWS > end || (p.causal && n0 + ROWS > row0 + 1)) {
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          int key = n0 + 8 * n + 2 * t + e % 2;
          if (key >= end || (p.causal && key > row + e / 2 * 8)) ds[n][e] = 0.f;
        }
    }
    if (n0 + ROWS > keys && keys < p.t) {
      // What stands behind the keys means nothing, and times their weight of 0 would still be NaN where it is.
      for (int j = threadIdx.x; j < BOXES * ROWS * 8; j += 128)
        if (n0 + j / 8 % ROWS >= keys) *(uint4*)(kt + j * 16) = make_uint4(0, 0, 0, 0);
      shared_written();
      __syncthreads();
    }
    u32 weights[4][4];
    round_all(weights, ds);
    wgmma_begin();
    start_sum(sum, weights, kt);
    wgmma_done<0>();
    if (step + 2 < steps) {
      __syncthreads();
      if (threadIdx.x == 0) load_keys(step + 2);
    }
  }
  store_sum(dq + ((i64)b * p.t + row0) * p.ds + head * D, p.ds, sum, p.scale, p.t - row0);
}

// Gradients of keys and values; the scores are transposed. Grid: (tiles of keys, b * hkv).
extern "C" __global__ void __launch_bounds__(128, KEY_BLOCKS)
    attention_keys_64(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                      const __grid_constant__ TensorMap g, const float2* terms, bf16* dk, bf16* dv, const int* lengths, Gradients p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ u64 ready_k, ready[2];
  __shared__ __align__(16) float2 all_terms[2][ROWS];
  unsigned char *kt = memory, *vt = kt + TILE, *tiles = vt + TILE;
  int b = blockIdx.y / p.hkv, kv = blockIdx.y % p.hkv, heads = p.h / p.hkv, key0 = blockIdx.x * ROWS;
  int keys = lengths ? min(lengths[b], p.t) : p.t;
  // Tiles of a head from the first one on whose positions see a key of this tile; none if nothing sees them.
  int start = p.causal ? blockIdx.x : 0, of_head = (p.t + ROWS - 1) / ROWS - start, steps = key0 < keys ? heads * of_head : 0;
  if (threadIdx.x == 0) {
    barrier_init(&ready_k, 1);
    barrier_init(ready, 1);
    barrier_init(ready + 1, 1);
    barriers_ready();
  }
  __syncthreads();
  auto load_positions = [&](int step) {
    int head = kv * heads + step / of_head, first = (start + step % of_head) * ROWS;
    unsigned char* to = tiles + (step & 1) * 2 * TILE;
    u64* barrier = ready + (step & 1);
    barrier_expect(barrier, 2 * TILE + ROWS * 8);
    load_head(to, &q, barrier, head, first, b);
    load_head(to + TILE, &g, barrier, head, first, b);
    load_bytes(all_terms[step & 1], terms + ((i64)b * p.h + head) * p.padded + first, ROWS * 8, barrier);
  };
  if (threadIdx.x == 0 && steps > 0) {
    barrier_expect(&ready_k, 2 * TILE);
    load_head(kt, &k, &ready_k, kv, key0, b);
    load_head(vt, &v, &ready_k, kv, key0, b);
    load_positions(0);
    if (steps > 1) load_positions(1);
  }

  int lane = threadIdx.x % 32, t = lane % 4, key = key0 + threadIdx.x / 32 * 16 + lane / 4;
  float dks[D / 8][4], dvs[D / 8][4], scale = p.scale * 1.44269504f;
  clear(dks);
  clear(dvs);
  if (steps > 0) barrier_wait(&ready_k, 0);
  for (int step = 0; step < steps; step++) {
    int first = (start + step % of_head) * ROWS;
    const unsigned char *qt = tiles + (step & 1) * 2 * TILE, *gt = qt + TILE;
    const float2* terms_of = all_terms[step & 1] + 2 * t;
    barrier_wait(ready + (step & 1), step >> 1 & 1);
    float s[8][4], ds[8][4];
    wgmma_begin();
    start_scores(s, kt, qt);
    start_scores(ds, vt, gt);
    wgmma_done<1>();
    bool masks = key0 + ROWS > keys || (p.causal && first < key0 + ROWS);
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float log = terms_of[8 * n + e].x;
#pragma unroll
        for (int r = 0; r < 2; r++) s[n][2 * r + e] = power_of_2(s[n][2 * r + e] * scale - log);
      }
    auto hidden = [&](int n, int e) {
      int own = key + e / 2 * 8;
      return own >= keys || (p.causal && own > first + 8 * n + 2 * t + e % 2);
    };
    if (masks) {
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (hidden(n, e)) s[n][e] = 0.f;
    }
    wgmma_done<0>();
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float dot = terms_of[8 * n + e].y;
#pragma unroll
        for (int r = 0; r < 2; r++) ds[n][2 * r + e] = s[n][2 * r + e] * (ds[n][2 * r + e] - dot);
      }
    if (masks) {
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (hidden(n, e)) ds[n][e] = 0.f;
    }
    u32 weights[4][4], gradients[4][4];
    round_all(weights, s);
    round_all(gradients, ds);
    wgmma_begin();
    start_sum(dvs, weights, gt);
    start_sum(dks, gradients, qt);
    wgmma_done<0>();
    if (step + 2 < steps) {
      __syncthreads();
      if (threadIdx.x == 0) load_positions(step + 2);
    }
  }
  i64 to = ((i64)b * p.t + key0) * p.ds + kv * D;
  store_sum(dk + to, p.ds, dks, p.scale, p.t - key0);
  store_sum(dv + to, p.ds, dvs, 1.f, p.t - key0);
}
