// Products that end in the exact GELU, in bf16, summed in float32, for rows a (m x k). Forward, with rows b (n x k): y = gelu(a b^T + bias);
// with BEFORE the rounded value before the activation as well, which is then what is activated; with SLOPES the derivatives.
// BACKWARD, with columns b (k x n): y = a b times the derivatives.
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

// Phi(-a). The polynomial is its log2, fitted for a < 8 by reweighted least squares at 8001 points: Phi is wrong by less than 4e-5 of itself, a
// fiftieth of what rounding to bf16 changes; beyond that it goes to zero.
__device__ __forceinline__ float lower_half(float a) {
  float f = -1.26244974e-06f;
  f = f * a + 4.82031479e-05f;
  f = f * a - 0.000807247933f;
  f = f * a + 0.00794458548f;
  f = f * a - 0.052635433f;
  f = f * a - 0.459956698f;
  f = f * a - 1.15061008f;
  f = f * a - 1.00004304f;
  return power_of_2(f);
}

// x Phi(x) = max(x, 0) - |x| Phi(-|x|).
__device__ __forceinline__ float gelu(float x) { return fmaf(-fabsf(x), lower_half(fabsf(x)), fmaxf(x, 0.f)); }

// The same with the derivative at -|x|, p (1 - a density(a) / p) for p = Phi(-a): its second factor is a polynomial, fitted likewise, that makes
// an error of less than 4e-5. For a > 8 both are made with Phi(-8) = 6e-16, so that the value keeps its sign.
__device__ __forceinline__ float gelu(float x, float& slope) {
  float a = fminf(fabsf(x), 8.f), p = lower_half(a), g = 0.0113648695f;
  g = g * a - 0.0941334766f;
  g = g * a - 0.646105478f;
  g = g * a - 0.796069042f;
  g = g * a + 0.99996262f;
  slope = p * g;
  return fmaf(-fabsf(x), p, fmaxf(x, 0.f));
}

// ---- derivatives in 8 bits: step 27 is 0 and step 228 is 1, and all lie between -0.129 and 1.129 ----

constexpr float STEPS = 201.f, FIRST_STEP = 8388608.f + 27.f;  // 2^23, so that the steps are a number's last bits

__device__ __forceinline__ u32 permute(u32 low, u32 high, u32 bytes) {
  u32 x;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(x) : "r"(low), "r"(high), "r"(bytes));
  return x;
}

// Steps of the derivatives at four numbers, given those at their negative values, and in pairs the activations, whose signs are theirs: at
// positive ones they are 1 less these.
__device__ __forceinline__ u32 steps_of(const float (&slope)[4], const u32 (&y)[2]) {
  u32 s[4];
#pragma unroll
  for (int e = 0; e < 4; e++) s[e] = __float_as_uint(fmaf(slope[e], STEPS, FIRST_STEP));
  u32 signs = permute(y[0], y[1], 0xfdb9);  // all bits of a byte are the sign
  return permute(permute(s[0], s[1], 0x0040), permute(s[2], s[3], 0x0040), 0x5410) ^ ~signs;
}

// x times the derivatives.
__device__ __forceinline__ void times_slopes(float (&x)[4], u32 steps) {
#pragma unroll
  for (int e = 0; e < 4; e++) {
    float step = __uint_as_float(permute(steps, 0x4b000000, 0x7440 + e)) - FIRST_STEP;
    x[e] *= step * (1.f / STEPS);
  }
}

// The tile of a turn: bands of 2048 columns, and in a band row by row, so that what blocks read at a time is in the cache.
__device__ __forceinline__ void tile_at(const Product& p, int turn, int& row, int& column) {
  constexpr int BAND = 2048 / BN;
  int band = turn / (BAND * p.tiles_m), width = min(BAND, p.tiles_n - band * BAND), in = turn - band * BAND * p.tiles_m;
  row = in / width * BM;
  column = (band * BAND + in % width) * BN;
}

// Derivatives stand as the threads hold them: 16 bytes of each of a warpgroup's threads for 64 rows and 32 columns, and so on for a tile.
constexpr int PACKS = BM * BN / 16;

__device__ __forceinline__ uint4* slopes_of(uint4* slopes, const Product& p, int row, int column) {
  return slopes + (i64)(row / BM * p.tiles_n + column / BN) * PACKS;
}

// Grid: as many blocks as there are multiprocessors, or tiles. Maps have boxes of 64 columns and, in this order, BM, BN (BACKWARD: 64), 64
// and 64 rows.
extern "C" __global__ void __launch_bounds__(384, 1)
    product_gelu(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap y,
                 const __grid_constant__ TensorMap before, const bf16* bias, uint4* slopes, Product p) {
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
        if (BACKWARD) ask_for(slopes_of(slopes, p, row, column), PACKS * 16);
        for (int k = 0; k < blocks; k++) {
          barrier_wait(empty + stage, parity);
          barrier_expect(full + stage, STAGE);
          load_box(memory + stage * STAGE, &a, full + stage, k * BK, row);
          unsigned char* to = memory + stage * STAGE + A_BYTES;
          if (BACKWARD) {
            for (int i = 0; i < BN / 64; i++) load_box(to + i * BOX, &b, full + stage, column + 64 * i, k * BK);
          } else {
            load_box(to, &b, full + stage, k * BK, column);
          }
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
            wgmma<BACKWARD>(c[i], tile_of(from + i * BOX + j * 32, 16, 1024),
                            BACKWARD ? tile_of(from + A_BYTES + j * 2048, BOX, 1024) : tile_of(from + A_BYTES + j * 32, 16, 1024), k + j > 0);
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
      uint4* own_slopes = slopes_of(slopes, p, row, column) + threadIdx.x % 128;
#pragma unroll
      for (int i = 0; i < PARTS; i++)
#pragma unroll
        for (int j = 0; j < BN / 64; j++) {
          uint4* pack = own_slopes + (i * (BN / 64) + j) * 256;
          if (BACKWARD) {
#pragma unroll
            for (int n = 0; n < 8; n += 4) {
              uint4 steps = pack[n * 32];
              times_slopes(c[i][8 * j + n], steps.x);
              times_slopes(c[i][8 * j + n + 1], steps.y);
              times_slopes(c[i][8 * j + n + 2], steps.z);
              times_slopes(c[i][8 * j + n + 3], steps.w);
            }
          } else if (bias) {
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
          if (SLOPES) {
#pragma unroll
            for (int n = 0; n < 8; n += 4) {
              u32 steps[4];
#pragma unroll
              for (int m = 0; m < 4; m++) {
                float slope[4], y[4];
#pragma unroll
                for (int e = 0; e < 4; e++) y[e] = gelu(c[i][8 * j + n + m][e], slope[e]);
                v[n + m][0] = pair(y[0], y[1]);
                v[n + m][1] = pair(y[2], y[3]);
                steps[m] = steps_of(slope, v[n + m]);
              }
              pack[n * 32] = make_uint4(steps[0], steps[1], steps[2], steps[3]);
            }
          } else {
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
              for (int e = 0; e < 2; e++) {
                float low = c[i][8 * j + n][2 * e], high = c[i][8 * j + n][2 * e + 1];
                v[n][e] = BEFORE || BACKWARD ? pair(low, high) : pair(gelu(low), gelu(high));
              }
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
