// The same for heads of 128, of which a block has room in a multiprocessor: one warp copies, two warpgroups with 64 query rows of one head
// each multiply. While weights are multiplied with the values of N keys, the scores of the next N become weights, and while
// one warpgroup waits for that, the other one has its turn to multiply. All copies are boxes of 64 columns, swizzled.

constexpr int COPYING = 40, MULTIPLYING = 232;  // registers of a thread
static_assert(W == 2, "two take turns");

// What products that have ended leave in registers is not read before they have.
template <int n> __device__ __forceinline__ void made(float (&c)[n][4]) {
#pragma unroll
  for (int i = 0; i < n; i++)
#pragma unroll
    for (int e = 0; e < 4; e++) asm volatile("" : "+f"(c[i][e])::"memory");
}

// Grid: (tiles of queries, b * h). Writes `o` and the log-sum-exp, [b, h, tq].
extern "C" __global__ void __launch_bounds__(128 * (W + 1), 1)
    attention_overlapped(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                         bf16* o, float* lse, const int* lengths, Attention p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ u64 ready_q, ready_k[2], ready_v[2], used_k[2], used_v[2];
  unsigned char *keys_of = memory + QUERIES * 128 * BOXES, *values_of = keys_of + 2 * BOXES * KEYS;
  // The last rows see the most keys, and start first.
  int head = blockIdx.y % p.h, b = blockIdx.y / p.h, row0 = (gridDim.x - 1 - blockIdx.x) * QUERIES, kv = head / (p.h / p.hkv);
  int keys = lengths ? min(lengths[b], p.tk) : p.tk, end = p.causal ? min(keys, p.offset + row0 + QUERIES) : keys;
  int steps = (end + N - 1) / N;
  if (threadIdx.x == 0) {
    barrier_init(&ready_q, 1);
    for (int i = 0; i < 2; i++) {
      barrier_init(ready_k + i, 1);
      barrier_init(ready_v + i, 1);
      barrier_init(used_k + i, W);
      barrier_init(used_v + i, W);
    }
    barriers_ready();
  }
  let_next_start();
  wait_for_previous();
  __syncthreads();
  if (threadIdx.x < 128) {
    fewer_registers<COPYING>();
    int column = kv * p.column, matrix = b * p.sequence + kv * p.head;
    if (threadIdx.x == 0 && steps > 0) {
      load_head(memory, &q, &ready_q, head * D, row0, b, QUERIES);
      for (int step = 0; step < steps; step++) {
        int i = step & 1;
        u32 parity = ~(step >> 1) & 1;
        barrier_wait(used_k + i, parity);
        load_head(keys_of + i * BOXES * KEYS, &k, ready_k + i, column, step * N, matrix, N);
        barrier_wait(used_v + i, parity);
        load_head(values_of + i * BOXES * KEYS, &v, ready_v + i, column, step * N, matrix, N);
      }
    }
    return;
  }
  more_registers<MULTIPLYING>();
  int own = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, t = lane % 4;
  int first = row0 + own * 64, row = first + warp * 16 + lane / 4;
  bool leads = threadIdx.x % 128 == 0;
  float top[2] = {-infinity(), -infinity()}, total[2] = {0.f, 0.f}, shrink[2], out[D / 8][4], s[N / 8][4], scale = p.scale * 1.44269504f;
  u32 weights[N / 16][4];
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) out[n][e] = 0.f;

  // Starts the products of queries and keys.
  auto score = [&](int step) {
    const unsigned char *qt = memory + own * 64 * 128, *kt = keys_of + (step & 1) * BOXES * KEYS;
    barrier_wait(ready_k + (step & 1), step >> 1 & 1);
    wgmma_begin();
#pragma unroll
    for (int j = 0; j < D / 16; j++)
      wgmma(s, tile_of(qt + j / 4 * QUERIES * 128 + j % 4 * 32, 16, 1024), tile_of(kt + j / 4 * KEYS + j % 4 * 32, 16, 1024), j > 0);
    wgmma_queued();
  };
  // Starts those of weights and values.
  auto weigh = [&](int step) {
    unsigned char* vt = values_of + (step & 1) * BOXES * KEYS;
    int n0 = step * N;
    barrier_wait(ready_v + (step & 1), step >> 1 & 1);
    if (n0 + N > keys && keys < p.tk) {
      // What stands behind the keys means nothing, and times their weight of 0 would still be NaN where it is.
      for (int j = threadIdx.x - 128; j < BOXES * N * 8; j += 128 * W)
        if (n0 + j / 8 % N >= keys) *(uint4*)(vt + j * 16) = make_uint4(0, 0, 0, 0);
      shared_written();
      turn_taken(1);
    }
    wgmma_begin();
#pragma unroll
    for (int j = 0; j < N / 16; j++) wgmma_turned(out, weights[j], tile_of(vt + j * 2048, KEYS, 1024), 1);
    wgmma_queued();
  };
  // Scores become weights, and `shrink` what sums so far are multiplied with.
  auto soften = [&](int step) {
    int n0 = step * N;
    hide(s, p, n0, end, first, row, t);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float most = top[r];
#pragma unroll
      for (int n = 0; n < N / 8; n++) most = fmaxf(most, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      most = quad_max(most);
      float base = most == -infinity() ? 0.f : most * scale, sum = 0.f;
      shrink[r] = power_of_2(top[r] * scale - base);
      top[r] = most;
#pragma unroll
      for (int n = 0; n < N / 8; n++) {
        s[n][2 * r] = power_of_2(s[n][2 * r] * scale - base);
        s[n][2 * r + 1] = power_of_2(s[n][2 * r + 1] * scale - base);
        sum += s[n][2 * r] + s[n][2 * r + 1];
      }
      total[r] = total[r] * shrink[r] + sum;
    }
  };
  auto rounded = [&]() {
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int r = 0; r < 2; r++) weights[n / 2][n % 2 * 2 + r] = pair(s[n][2 * r], s[n][2 * r + 1]);
  };
  auto release = [&](u64* barrier) {
    if (leads) barrier_arrive(barrier);
  };

  if (steps > 0) {
    barrier_wait(&ready_q, 0);
    if (own == 1) turn_given(2);
    turn_taken(2 + own);
    score(0);
    turn_given(3 - own);
    wgmma_done<0>();
    made(s);
    release(used_k);
    soften(0);
    rounded();
    for (int step = 0; step + 1 < steps; step++) {
      turn_taken(2 + own);
      score(step + 1);
      weigh(step);
      turn_given(3 - own);
      wgmma_done<1>();
      made(s);
      release(used_k + (step + 1 & 1));
      soften(step + 1);
      wgmma_done<0>();
      made(out);
      release(used_v + (step & 1));
#pragma unroll
      for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) out[n][e] *= shrink[e / 2];
      rounded();
    }
    if (own == 0) turn_taken(2);
    weigh(steps - 1);
    wgmma_done<0>();
    made(out);
  }

  store_rows(o, lse, p, out, top, total, b, head, row, t);
}
