// Rolling memories: positions that move to the front, and the sinks that stand ahead of what is seen.

// The memories of all layers, [heads, room, d]: `table` has the addresses of keys and values in turn. `keys` and `values` are those
// of the sinks, [layers, heads, sinks, d], turned by their own places; `cos` and `sin` turn by a number of places.
struct Rolling {
  const u64* table;
  const T *keys, *values, *cos, *sin;
  int heads, sinks, room, d;
};

// Puts the sinks, turned by `first`, at the places from `first` on; where there is a length, from the one on that leaves `window`
// positions. A thread takes 8 pairs of a key and as much of a value, of which there are n.
extern "C" __global__ void show_sinks(Rolling r, const u32* lengths, int first, int window, int n) {
  if (lengths) first = max(0, (int)lengths[0] - window);
  int half = r.d / 2, chunks = half / 8;
  for (i64 i = thread_index(); i < n; i += thread_count()) {
    i64 row = i / chunks;
    int c = (int)(i % chunks) * 8, sink = (int)(row % r.sinks), head = (int)(row / r.sinks % r.heads);
    i64 layer = row / r.sinks / r.heads, from = row * r.d + c, to = ((i64)head * r.room + first + sink) * r.d + c;
    float a[8], b[8];
    load<8>(r.keys + from, a);
    load<8>(r.keys + from + half, b);
#pragma unroll
    for (int j = 0; j < 8; j++) rotate(r.cos, r.sin, (i64)first * half + c + j, a[j], b[j]);
    T *keys = (T*)r.table[2 * layer], *values = (T*)r.table[2 * layer + 1];
    store<8>(keys + to, a);
    store<8>(keys + to + half, b);
    *(uint4*)(values + to) = *(const uint4*)(r.values + from);
    *(uint4*)(values + to + half) = *(const uint4*)(r.values + from + half);
  }
}

// Moves n positions from place `from` to place `to` ahead of it, the keys turned back by as many places. A block moves the keys
// or the values of one head: what it writes has been read by all its threads, and nothing that it will read.
extern "C" __global__ void __launch_bounds__(256) move_back(Rolling r, int from, int to, int n) {
  constexpr int U = 4;
  int half = r.d / 2, chunks = half / 8, head = blockIdx.x % r.heads, tensor = blockIdx.x / r.heads;
  bool keys = tensor % 2 == 0;
  T* base = (T*)r.table[tensor] + (i64)head * r.room * r.d;
  const T *cos = r.cos + (i64)(from - to) * half, *sin = r.sin + (i64)(from - to) * half;
  int total = n * chunks;
  for (int i0 = 0; i0 < total; i0 += 256 * U) {
    uint4 low[U], high[U];
#pragma unroll
    for (int u = 0; u < U; u++) {
      int i = i0 + 256 * u + threadIdx.x;
      if (i >= total) continue;
      const T* p = base + (i64)(from + i / chunks) * r.d + i % chunks * 8;
      low[u] = *(const uint4*)p;
      high[u] = *(const uint4*)(p + half);
    }
    __syncthreads();
#pragma unroll
    for (int u = 0; u < U; u++) {
      int i = i0 + 256 * u + threadIdx.x;
      if (i >= total) continue;
      T* p = base + (i64)(to + i / chunks) * r.d + i % chunks * 8;
      if (!keys) {
        *(uint4*)p = low[u];
        *(uint4*)(p + half) = high[u];
        continue;
      }
      float a[8], b[8];
      widen(low[u], a);
      widen(high[u], b);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        int c = i % chunks * 8 + j;
        rotate(widen(cos[c]), -widen(sin[c]), a[j], b[j]);
      }
      store<8>(p, a);
      store<8>(p + half, b);
    }
  }
}
