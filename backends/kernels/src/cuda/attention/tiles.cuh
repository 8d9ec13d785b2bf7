// Attention over tiles of rows in shared memory, for heads whose size D is 32, 64 or 128 and blocks of W warps. PACKED says
// that all rows start on a 16-byte boundary and are a multiple of that long.
//
// All query heads that share a key head form one matrix of `group * tq` rows. A warp owns R times 16 rows of a tile; its
// scores stay in registers in the fragment layout of mma.m16n8k16: lane l holds rows l / 4 and l / 4 + 8, columns
// 2 (l % 4) and the next one of every group of 8 columns.

// Elements between rows of a tile: 16 bytes more than a row, so that the rows of a fragment fall into other banks.
#define STRIDE (D + 16 / (int)sizeof(T))
constexpr int THREADS = 32 * W;

// The tile and the key head (of all sequences) of a block on a grid of (tiles, heads): 32 heads take turns, so that the
// first tiles of all of them start first, and what they share is still near.
struct Turn {
  int tile, head;
  __device__ __forceinline__ Turn() {
    u32 index = blockIdx.y * gridDim.x + blockIdx.x, first = index / (32 * gridDim.x) * 32;
    u32 heads = min(32u, gridDim.y - first), own = index - first * gridDim.x;
    tile = own / heads;
    head = first + own % heads;
  }
};

// Starts to copy `count` rows, of which one stands at `offset(i)` elements from `from`, to a tile of ROWS rows, padded with
// zeros. The threads of W warps call it.
template <int ROWS, class F>
__device__ __forceinline__ void load_tile(T* tile, const T* from, int count, int d, F offset) {
  const int V = Pack<T>::N, chunks = D / V, step = THREADS / chunks;
  int first = threadIdx.x % THREADS / chunks, c = threadIdx.x % chunks * V;
  static_assert(THREADS % chunks == 0 && ROWS % step == 0, "every thread copies the same chunk of its rows");
  tile += first * STRIDE + c;
  from += c;
#pragma unroll
  for (int j = 0; j < ROWS; j += step) {
    bool valid = first + j < count;
    const T* row = from + offset(first + j);
    if (PACKED) {
      copy_16(tile + j * STRIDE, row, valid && c < d);
    } else {
      Pack<T> pack;
#pragma unroll
      for (int e = 0; e < V; e++) pack.v[e] = valid && c + e < d ? row[e] : Narrow<T>::of(0.f);
      *(Pack<T>*)(tile + j * STRIDE) = pack;
    }
  }
}

// The same for rows `stride` elements apart.
template <int ROWS>
__device__ __forceinline__ void load_rows(T* tile, const T* from, i64 stride, int count, int d) {
  const int step = THREADS / (D / Pack<T>::N);
  int first = threadIdx.x % THREADS / (D / Pack<T>::N);
  i64 start = first * stride, each = step * stride;
  load_tile<ROWS>(tile, from, count, d, [&](int i) { return start + (i - first) / step * each; });
}

template <int A, int C> __device__ __forceinline__ void clear(float (&c)[A][C][4]) {
#pragma unroll
  for (int a = 0; a < A; a++)
#pragma unroll
    for (int i = 0; i < C; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) c[a][i][e] = 0.f;
}

#ifdef WIDE
// float32: every lane computes its elements of the fragments from shared memory.

// c += a b^T for 16 R rows of a tile and N rows of another.
template <int N> __device__ __forceinline__ void product_nt(float (&c)[R][N / 8][4], const T* a, const T* b) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int r = 0; r < R; r++)
    for (int k = 0; k < D; k += 4) {
      float a0[4], a1[4], bv[4];
      load<4>(a + (16 * r + g) * STRIDE + k, a0);
      load<4>(a + (16 * r + g + 8) * STRIDE + k, a1);
#pragma unroll
      for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          load<4>(b + (8 * n + 2 * t + e) * STRIDE + k, bv);
#pragma unroll
          for (int j = 0; j < 4; j++) {
            c[r][n][e] += a0[j] * bv[j];
            c[r][n][2 + e] += a1[j] * bv[j];
          }
        }
    }
}

// c += p b for the fragments p (16 R x N) and N rows of a tile; `scratch` is this warp's 16 x (N + 1) elements.
template <int N>
__device__ __forceinline__ void product_nn(float (&c)[R][D / 8][4], const float (&p)[R][N / 8][4], const T* b, T* scratch) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < R; r++) {
    __syncwarp();
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) scratch[(g + e / 2 * 8) * (N + 1) + 8 * n + 2 * t + e % 2] = p[r][n][e];
    __syncwarp();
    for (int k = 0; k < N; k++) {
      float p0 = scratch[g * (N + 1) + k], p1 = scratch[(g + 8) * (N + 1) + k];
#pragma unroll
      for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float bv = b[k * STRIDE + 8 * n + 2 * t + e];
          c[r][n][e] += p0 * bv;
          c[r][n][2 + e] += p1 * bv;
        }
    }
  }
}
#define SCRATCH(warps, N) ((warps) * 16 * ((N) + 1))
#else
// bf16: tensor cores.

template <int N> __device__ __forceinline__ void product_nt(float (&c)[R][N / 8][4], const T* a, const T* b) {
  int lane = threadIdx.x % 32;
  const T* pa = a + (lane & 15) * STRIDE + (lane >> 4) * 8;
  const T* pb = b + ((lane & 7) + (lane >> 4) * 8) * STRIDE + ((lane >> 3) & 1) * 8;
#pragma unroll
  for (int k = 0; k < D; k += 16) {
    u32 av[R][4], bv[4];
#pragma unroll
    for (int r = 0; r < R; r++) load_matrices(av[r], pa + 16 * r * STRIDE + k);
#pragma unroll
    for (int n = 0; n < N; n += 16) {
      load_matrices(bv, pb + n * STRIDE + k);
#pragma unroll
      for (int r = 0; r < R; r++) {
        mma(c[r][n / 8], av[r], bv[0], bv[1]);
        mma(c[r][n / 8 + 1], av[r], bv[2], bv[3]);
      }
    }
  }
}

template <int N>
__device__ __forceinline__ void product_nn(float (&c)[R][D / 8][4], const float (&p)[R][N / 8][4], const T* b, T*) {
  int lane = threadIdx.x % 32;
  const T* pb = b + (lane & 15) * STRIDE + (lane >> 4) * 8;
#pragma unroll
  for (int k = 0; k < N; k += 16) {
    u32 bv[4], av[R][4];
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int i = 0; i < 4; i++) av[r][i] = pair(p[r][k / 8 + i / 2][i % 2 * 2], p[r][k / 8 + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < D; n += 16) {
      load_matrices_transposed(bv, pb + k * STRIDE + n);
#pragma unroll
      for (int r = 0; r < R; r++) {
        mma(c[r][n / 8], av[r], bv[0], bv[1]);
        mma(c[r][n / 8 + 1], av[r], bv[2], bv[3]);
      }
    }
  }
}
#define SCRATCH(warps, N) 0
#endif

// Stores a row of d elements, half `i` of a fragment, times `factor`, where `valid`. All lanes of a warp call it.
__device__ __forceinline__ void store_row(T* row, int d, const float (&c)[D / 8][4], int i, float factor, bool valid) {
  int t = threadIdx.x % 4;
#ifndef WIDE
  if (PACKED) {
#pragma unroll
    for (int n = 0; n < D / 8; n += 4) {
      u32 x[4];
#pragma unroll
      for (int j = 0; j < 4; j++) x[j] = pair(c[n + j][2 * i] * factor, c[n + j][2 * i + 1] * factor);
      transpose_quad(x);
      if (valid && 8 * (n + t) < d) *(uint4*)(row + 8 * (n + t)) = make_uint4(x[0], x[1], x[2], x[3]);
    }
    return;
  }
#endif
  if (!valid) return;
#pragma unroll
  for (int n = 0; n < D / 8; n++)
#pragma unroll
    for (int e = 0; e < 2; e++)
      if (8 * n + 2 * t + e < d) row[8 * n + 2 * t + e] = Narrow<T>::of(c[n][2 * i + e] * factor);
}
