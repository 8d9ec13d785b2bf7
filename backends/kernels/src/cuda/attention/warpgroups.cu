// The forward pass by products of warpgroups, for heads whose size D is 64: W warpgroups with 64 query rows of one head each, against N
// keys at a time, of which the next ones are on their way while these are used. All copies are boxes of 64 columns, swizzled.

// Grid: (tiles of queries, b * h). Writes `o` and the log-sum-exp, [b, h, tq].
extern "C" __global__ void __launch_bounds__(128 * W, BLOCKS)
    attention_warpgroups(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                         bf16* o, float* lse, const int* lengths, Attention p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ u64 ready_q, ready_k[2], ready_v[2], used[2];
  unsigned char* tiles = memory + QUERIES * 128 * BOXES;
  // The last rows see the most keys, and start first.
  int head = blockIdx.y % p.h, b = blockIdx.y / p.h, row0 = (gridDim.x - 1 - blockIdx.x) * QUERIES, kv = head / (p.h / p.hkv);
  int keys = lengths ? min(lengths[b], p.tk) : p.tk, end = p.causal ? min(keys, p.offset + row0 + QUERIES) : keys;
  int steps = (end + N - 1) / N, column = kv * p.column, matrix = b * p.sequence + kv * p.head;
  if (threadIdx.x == 0) {
    barrier_init(&ready_q, 1);
    for (int i = 0; i < 2; i++) {
      barrier_init(ready_k + i, 1);
      barrier_init(ready_v + i, 1);
      barrier_init(used + i, W);
    }
    barriers_ready();
  }
  let_next_start();
  wait_for_previous();
  __syncthreads();
  auto load_keys = [&](int step) {
    int i = step & 1;
    unsigned char* to = tiles + i * 2 * BOXES * KEYS;
    load_head(to, &k, ready_k + i, column, step * N, matrix, N);
    load_head(to + BOXES * KEYS, &v, ready_v + i, column, step * N, matrix, N);
  };
  if (threadIdx.x == 0 && steps > 0) {
    load_head(memory, &q, &ready_q, head * D, row0, b, QUERIES);
    load_keys(0);
    if (steps > 1) load_keys(1);
  }

  int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, t = lane % 4;
  int first = row0 + group * 64, row = first + warp * 16 + lane / 4;
  float top[2] = {-infinity(), -infinity()}, total[2] = {0.f, 0.f}, out[D / 8][4], scale = p.scale * 1.44269504f;
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) out[n][e] = 0.f;
  if (steps > 0) barrier_wait(&ready_q, 0);
  for (int step = 0; step < steps; step++) {
    int i = step & 1, n0 = step * N;
    u32 parity = step >> 1 & 1;
    unsigned char *kt = tiles + i * 2 * BOXES * KEYS, *vt = kt + BOXES * KEYS;
    const unsigned char* qt = memory + group * 64 * 128;
    float s[N / 8][4];
    barrier_wait(ready_k + i, parity);
    wgmma_begin();
#pragma unroll
    for (int j = 0; j < D / 16; j++)
      wgmma(s, tile_of(qt + j / 4 * QUERIES * 128 + j % 4 * 32, 16, 1024), tile_of(kt + j / 4 * KEYS + j % 4 * 32, 16, 1024), j > 0);
    wgmma_queued();
    wgmma_done<0>();
    hide(s, p, n0, end, first, row, t);
    u32 weights[N / 16][4];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float most = top[r];
#pragma unroll
      for (int n = 0; n < N / 8; n++) most = fmaxf(most, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      most = quad_max(most);
      float base = most == -infinity() ? 0.f : most * scale, shrink = power_of_2(top[r] * scale - base), sum = 0.f;
      top[r] = most;
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        out[n][2 * r] *= shrink;
        out[n][2 * r + 1] *= shrink;
      }
#pragma unroll
      for (int n = 0; n < N / 8; n++) {
        float low = power_of_2(s[n][2 * r] * scale - base), high = power_of_2(s[n][2 * r + 1] * scale - base);
        sum += low + high;
        weights[n / 2][n % 2 * 2 + r] = pair(low, high);
      }
      total[r] = total[r] * shrink + sum;
    }
    barrier_wait(ready_v + i, parity);
    if (n0 + N > keys && keys < p.tk) {
      // What stands behind the keys means nothing, and times their weight of 0 would still be NaN where it is.
      for (int j = threadIdx.x; j < BOXES * N * 8; j += 128 * W)
        if (n0 + j / 8 % N >= keys) *(uint4*)(vt + j * 16) = make_uint4(0, 0, 0, 0);
      shared_written();
      __syncthreads();
    }
    wgmma_begin();
#pragma unroll
    for (int j = 0; j < N / 16; j++) wgmma_turned(out, weights[j], tile_of(vt + j * 2048, KEYS, 1024), 1);
    wgmma_queued();
    wgmma_done<0>();
    if (step + 2 < steps) {
      if (threadIdx.x % 128 == 0) barrier_arrive(used + i);
      if (threadIdx.x == 0) {
        barrier_wait(used + i, parity);
        load_keys(step + 2);
      }
    }
  }

  store_rows(o, lse, p, out, top, total, b, head, row, t);
}
