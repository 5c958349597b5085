// Images of 16-bit numbers with their channels last: result[j, c] = images[c * channel + place(j)], j an image's position.
//
// A block turns TILE channels by TILE positions in shared memory: positions that are neighbours are read together, channels
// are written together, 16 bytes a thread. Vector v of channel c lies at v ^ (c / 8), so that neither the eight vectors a
// quarter of a warp puts there nor the numbers of eight vectors by four positions that a warp takes share a bank.
#include "geometry.cuh"
#include "types.cuh"

#define TILE 64
#define VECTOR 8
#define ACROSS (TILE / VECTOR)
#define THREADS 256

struct TurnedImages {
    const void* images;
    void* result;
    long long channel;  // elements of `images` from one to the next
    int channels;       // a multiple of VECTOR
    int columns;        // positions of all images
    int vector;         // so many of them, from a multiple of it, are neighbours: 8, 4 or 1
    Divisor tiles;      // of channels
    Digit column[DIGITS];
};

struct __align__(16) Chunk { uint16 numbers[VECTOR]; };
struct __align__(8) Half { uint16 numbers[VECTOR / 2]; };

// The square, read as so many positions at once as `Some` holds, the same ones of every so many-th channel by one thread.
template <typename Some>
__device__ __forceinline__ void read(Chunk (&tile)[TILE][ACROSS], int first_c, int first_j, const TurnedImages& p) {
    const int count = sizeof(Some) / sizeof(uint16), across = TILE / count, j = threadIdx.x % across * count;
    if (first_j + j >= p.columns) return;
    const uint16* const from = (const uint16*)p.images + locate(first_j + j, p.column).other;
#pragma unroll
    for (int i = 0; i < TILE * across / THREADS; ++i) {
        const int c = threadIdx.x / across + i * (THREADS / across);
        if (first_c + c < p.channels)
            *(Some*)&tile[c][j / VECTOR ^ c / VECTOR].numbers[j % VECTOR] = *(const Some*)(from + (first_c + c) * p.channel);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) channels_last(const __grid_constant__ TurnedImages p) {
    __shared__ Chunk tile[TILE][ACROSS];
    const int thread = threadIdx.x, block = blockIdx.x, rest = divide(block, p.tiles);
    const int first_c = (block - rest * (int)p.tiles.divisor) * TILE, first_j = rest * TILE;
    if (p.vector == VECTOR) read<Chunk>(tile, first_c, first_j, p);
    else if (p.vector == VECTOR / 2) read<Half>(tile, first_c, first_j, p);
    else read<uint16>(tile, first_c, first_j, p);
    __syncthreads();
#pragma unroll
    for (int at = thread; at < TILE * ACROSS; at += THREADS) {
        const int vector = at % ACROSS, j = at / ACROSS, c = first_c + vector * VECTOR;
        if (c >= p.channels || first_j + j >= p.columns) continue;
        Chunk turned;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i)
            turned.numbers[i] = tile[vector * VECTOR + i][j / VECTOR ^ vector].numbers[j % VECTOR];
        *(Chunk*)((uint16*)p.result + (first_j + j) * (long long)p.channels + c) = turned;
    }
}
