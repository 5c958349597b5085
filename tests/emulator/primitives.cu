// Every wrapper of ptx.cuh once, by one warp: what a lane reads and writes are rows of words in the order of lanes.
#include "types.cuh"

#define READ 32
#define WRITTEN 23

struct Primitives {
    const void* words;
    void* results;
};

extern "C" __global__ void __launch_bounds__(32) primitives(const __grid_constant__ Primitives p) {
    __shared__ __align__(16) unsigned vectors[32][4], singles[32];
    const int lane = threadIdx.x;
    const unsigned* const words = (const unsigned*)p.words + lane * READ;
    unsigned* const results = (unsigned*)p.results + lane * WRITTEN;

    results[0] = float_to_bits(half_to_float((unsigned short)words[0]));
    results[1] = float_to_half(bits_to_float(words[1]));
    results[2] = high_product(words[2], words[3]);
    results[3] = round_to_tf32(words[1]);

    // Every third lane's copies bring zeros.
    copy_async<16>(vectors[lane], words + 4, lane % 3 != 0);
    close_copies();
    copy_async<4>(&singles[lane], words + 8, lane % 3 != 0);
    close_copies();
    wait_for_copies<1>();
    __syncthreads();
    unsigned left[4];
    load_matrices(left, vectors[lane]);
    for (int i = 0; i < 4; ++i) results[4 + i] = left[i];
    wait_for_copies<0>();
    __syncthreads();
    results[8] = singles[(lane + 1) % 32];

    // Words 9 to 26: six of fragments for each type.
    float sums[3][4];
    for (int type = 0; type < 3; ++type)
        for (int i = 0; i < 4; ++i) sums[type][i] = bits_to_float(words[27 + i]);
    unsigned fragments[3][4];
    for (int type = 0; type < 3; ++type)
        for (int i = 0; i < 4; ++i) fragments[type][i] = words[9 + type * 6 + i];
    multiply_float16(sums[0], fragments[0], words + 13);
    multiply_bfloat16(sums[1], fragments[1], words + 19);
    multiply_tf32(sums[2], fragments[2], words + 25);
    for (int type = 0; type < 3; ++type)
        for (int i = 0; i < 4; ++i) results[9 + type * 4 + i] = float_to_bits(sums[type][i]);
    const long long product = wide_product((int)words[2], (int)words[3]);
    results[21] = (unsigned)product;
    results[22] = (unsigned)(product >> 32);
}
