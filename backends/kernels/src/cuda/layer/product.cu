// y = gelu(a b^T + bias) in bf16, summed in float32, for rows a (m x k) and rows b (n x k); with BEFORE the rounded value before the
// activation as well, which is then what is activated.
//
// One warp copies tiles to a ring in shared memory. Two warpgroups have a tile of BM x BN each in turn: one is multiplied while
// the other one is activated and stored.

constexpr int BM = 192, BN = 128, BK = 64, STAGES = 5;
constexpr int PARTS = BM / 64;
constexpr int BOX = 64 * BK * 2, A_BYTES = PARTS * BOX, STAGE = A_BYTES + BN / 64 * BOX;
constexpr int COPYING = 40, MULTIPLYING = 232;  // registers of a thread

struct Product {
  int n, k, tiles_m, tiles_n;
};

// x Phi(x) = max(x, 0) - |x| Phi(-|x|). The polynomial is log2 Phi(-a), fitted for a < 8 by reweighted least squares at 8001 points:
// Phi is wrong by less than 4e-5 of itself, a fiftieth of what rounding to bf16 changes; beyond that it goes to zero.
__device__ __forceinline__ float gelu(float x) {
  float a = fabsf(x), f = -1.26244974e-06f;
  f = f * a + 4.82031479e-05f;
  f = f * a - 0.000807247933f;
  f = f * a + 0.00794458548f;
  f = f * a - 0.052635433f;
  f = f * a - 0.459956698f;
  f = f * a - 1.15061008f;
  f = f * a - 1.00004304f;
  return fmaf(-a, power_of_2(f), fmaxf(x, 0.f));
}

// The tile of a turn: bands of 2048 columns, and in a band row by row, so that what blocks read at a time is in the cache.
__device__ __forceinline__ void tile_at(const Product& p, int turn, int& row, int& column) {
  constexpr int BAND = 2048 / BN;
  int band = turn / (BAND * p.tiles_m), width = min(BAND, p.tiles_n - band * BAND), in = turn - band * BAND * p.tiles_m;
  row = in / width * BM;
  column = (band * BAND + in % width) * BN;
}

// Grid: as many blocks as there are multiprocessors, or tiles. Maps have boxes of 64 columns and, in this order, BM, BN, 64 and 64 rows.
extern "C" __global__ void __launch_bounds__(384, 1)
    product_gelu(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
                 const __grid_constant__ TensorMap before, const bf16* bias, Product p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  u64 *full = (u64*)(memory + STAGES * STAGE + 2 * BOX), *empty = full + STAGES;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, 1);
    }
    barriers_ready();
  }
  __syncthreads();
  int group = threadIdx.x / 128, blocks = (p.k + BK - 1) / BK, tiles = p.tiles_m * p.tiles_n;
  if (group == 0) {
    fewer_registers<COPYING>();
    if (threadIdx.x == 0) {
      int stage = 0;
      u32 parity = 1;
      for (int turn = blockIdx.x; turn < tiles; turn += gridDim.x) {
        int row, column;
        tile_at(p, turn, row, column);
        for (int k = 0; k < blocks; k++) {
          barrier_wait(empty + stage, parity);
          barrier_expect(full + stage, STAGE);
          load_box(memory + stage * STAGE, &a, full + stage, k * BK, row);
          load_box(memory + stage * STAGE + A_BYTES, &b, full + stage, k * BK, column);
          if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
          }
        }
      }
    }
  } else {
    more_registers<MULTIPLYING>();
    int own = group - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    bool leads = threadIdx.x % 128 == 0;
    unsigned char* box = memory + STAGES * STAGE + own * BOX;
    // Row and first 16 bytes of what this lane stores of 8 x 8 matrices.
    int to_row = warp * 16 + (lane / 8 & 1) * 8 + lane % 8, to_pack = lane / 16;
    int at = own * blocks, seen = 0;
    // A barrier's parity says nothing to one that has not seen the phase before: each waits until the other has seen all of its own.
    if (own == 1 && blockIdx.x < tiles) turn_given(3);
    for (int turn = blockIdx.x; turn < tiles; turn += gridDim.x, seen++) {
      if ((seen & 1) != own) continue;
      int stage = at % STAGES, released = stage;
      u32 parity = at / STAGES & 1;
      at += 2 * blocks;
      float c[PARTS][BN / 8][4];
      auto release = [&]() {
        if (leads) barrier_arrive(empty + released);
        if (++released == STAGES) released = 0;
      };
      turn_taken(3 + own);
      for (int k = 0; k < blocks; k++) {
        barrier_wait(full + stage, parity);
        const unsigned char* from = memory + stage * STAGE;
        wgmma_begin();
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
          for (int i = 0; i < PARTS; i++)
            wgmma(c[i], tile_of(from + i * BOX + j * 32, 16, 1024), tile_of(from + A_BYTES + j * 32, 16, 1024), k + j > 0);
        wgmma_queued();
        if (k > 0) {
          wgmma_done<1>();
          release();
        }
        if (++stage == STAGES) {
          stage = 0;
          parity ^= 1;
        }
      }
      if (turn + (int)gridDim.x < tiles) turn_given(4 - own);
      wgmma_done<0>();
      release();

      int row, column;
      tile_at(p, turn, row, column);
#pragma unroll
      for (int i = 0; i < PARTS; i++)
#pragma unroll
        for (int j = 0; j < BN / 64; j++) {
          if (bias) {
#pragma unroll
            for (int n = 0; n < 8; n++) {
              int at_column = column + 64 * j + 8 * n + 2 * (lane % 4);
              u32 two = at_column < p.n ? *(const u32*)(bias + at_column) : 0;
              float low = __uint_as_float(two << 16), high = __uint_as_float(two & 0xffff0000u);
              float(&e)[4] = c[i][8 * j + n];
              e[0] += low;
              e[1] += high;
              e[2] += low;
              e[3] += high;
            }
          }
          u32 v[8][2];
#pragma unroll
          for (int n = 0; n < 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
              float low = c[i][8 * j + n][2 * e], high = c[i][8 * j + n][2 * e + 1];
              v[n][e] = BEFORE ? pair(low, high) : pair(gelu(low), gelu(high));
            }
#pragma unroll
          for (int out = BEFORE ? 0 : 1; out < 2; out++) {
            if (BEFORE && out == 1) {
#pragma unroll
              for (int n = 0; n < 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                  v[n][e] = pair(gelu(__uint_as_float(v[n][e] << 16)), gelu(__uint_as_float(v[n][e] & 0xffff0000u)));
            }
            if (leads) stores_read<0>();
            warpgroup_barrier(1 + own);
#pragma unroll
            for (int n = 0; n < 8; n += 2)
              store_matrices(box + to_row * 128 + ((n + to_pack) ^ (to_row & 7)) * 16, v[n][0], v[n][1], v[n + 1][0], v[n + 1][1]);
            shared_written();
            warpgroup_barrier(1 + own);
            if (leads) {
              store_box(out == 0 ? &before : &y, box, column + 64 * j, row + 64 * i);
              stores_queued();
            }
          }
        }
    }
    if (leads) stores_done();
  }
}
