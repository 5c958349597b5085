// Every instruction that C++ has no word for, each with what it means in C++.
//
// The PTX body is what a GPU runs (NVRTC defines __CUDACC_RTC__), the C++ body what the CPU emulation of these sources
// runs; wherever a GPU is found the tests compare the two.
#pragma once

__device__ __forceinline__ float half_to_float(unsigned short bits) {
#ifdef __CUDACC_RTC__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    _Float16 value;
    __builtin_memcpy(&value, &bits, 2);
    return (float)value;
#endif
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
#ifdef __CUDACC_RTC__
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    const _Float16 rounded = (_Float16)value;
    unsigned short bits;
    __builtin_memcpy(&bits, &rounded, 2);
    return bits;
#endif
}

__device__ __forceinline__ float bits_to_float(unsigned bits) {
#ifdef __CUDACC_RTC__
    return __uint_as_float(bits);
#else
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
#endif
}

__device__ __forceinline__ unsigned float_to_bits(float value) {
#ifdef __CUDACC_RTC__
    return __float_as_uint(value);
#else
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
#endif
}

// The upper 32 bits of a product of 64.
__device__ __forceinline__ unsigned high_product(unsigned a, unsigned b) {
#ifdef __CUDACC_RTC__
    return __umulhi(a, b);
#else
    return (unsigned)((unsigned long long)a * b >> 32);
#endif
}

// A product of 64 bits: of two ints that are widened first NVRTC multiplies the upper halves too, in five instructions.
__device__ __forceinline__ long long wide_product(int a, int b) {
#ifdef __CUDACC_RTC__
    long long product;
    asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
    return product;
#else
    return (long long)a * b;
#endif
}

// Header-free C++ knows no mathematics; NVRTC and g++ each have these built in under other names.
__device__ __forceinline__ float power(float base, float exponent) {
#ifdef __CUDACC_RTC__
    return powf(base, exponent);
#else
    return __builtin_powf(base, exponent);
#endif
}
__device__ __forceinline__ double power(double base, double exponent) {
#ifdef __CUDACC_RTC__
    return pow(base, exponent);
#else
    return __builtin_pow(base, exponent);
#endif
}
__device__ __forceinline__ float root(float value) {
#ifdef __CUDACC_RTC__
    return sqrtf(value);
#else
    return __builtin_sqrtf(value);
#endif
}
__device__ __forceinline__ double root(double value) {
#ifdef __CUDACC_RTC__
    return sqrt(value);
#else
    return __builtin_sqrt(value);
#endif
}

// Shared memory whose size a launch gives, beginning at a multiple of so many bytes, 1024 at most.
#ifdef __CUDACC_RTC__
#define DYNAMIC_SHARED(name, alignment) extern __shared__ __align__(alignment) unsigned char name[]
#else
#define DYNAMIC_SHARED(name, alignment) unsigned char* const name = emulator::dynamic_memory
#endif

// Copies of 16 or 4 bytes from global to shared memory that pass no register: zeros arrive where nothing is `there`.
// Both addresses are multiples of the size. What a thread asks for, until it closes a group, lands together.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool there) {
    static_assert(BYTES == 16 || BYTES == 4, "asynchronous copies are of 16 or 4 bytes");
#ifdef __CUDACC_RTC__
    const unsigned to = (unsigned)__cvta_generic_to_shared(shared);
    // Whole vectors pass the first-level cache by (.cg): the block has them once, in shared memory.
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(there ? 16 : 0)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(there ? 4 : 0)
                     : "memory");
#else
    emulator::copy_later(shared, global, BYTES, there ? BYTES : 0);
#endif
}

__device__ __forceinline__ void close_copies() {
#ifdef __CUDACC_RTC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator::close_group();
#endif
}

// Until all but the last GROUPS groups of this thread have landed; a barrier then shows them to the block.
template <int GROUPS>
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC_RTC__
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#else
    emulator::wait_for_copies(GROUPS);
#endif
}

// Four matrices of eight rows of 16 bytes: lane 8 i + r brings the address of row r of matrix i, and gets the word
// lane % 4 of row lane / 4 of each.
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], const void* row) {
#ifdef __CUDACC_RTC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
#else
    if ((unsigned long long)row % 16) emulator::fail("a row of a matrix begins at no multiple of 16 bytes");
    emulator::collective(row, [&](auto of) {
        const unsigned lane = emulator::lane();
        for (unsigned i = 0; i < 4; ++i) words[i] = ((const unsigned*)of(i * 8 + lane / 4))[lane % 4];
        return 0;
    });
#endif
}

// A float32 number as tensor cores take it: 11 significant bits, to nearest, ties away from zero.
__device__ __forceinline__ unsigned round_to_tf32(unsigned bits) {
#ifdef __CUDACC_RTC__
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(bits_to_float(bits)));
    return rounded;
#else
    const unsigned magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fffffff;  // NaN
    return magnitude == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000;
#endif
}

// sums += left @ right, by a warp: 16 x 8 sums, 32 bytes of k in words of two 16-bit numbers or one of 32 bits.
//
// Word i of the left fragment holds row lane / 4 (+ 8 for odd i) and word lane % 4 (+ 4 for i > 1) of its k; the right
// one column lane / 4 alike; sum i is of row lane / 4 (+ 8 for i > 1) and column lane % 4 * 2 (+ 1 for odd i).
#ifdef __CUDACC_RTC__
#define MULTIPLY_FRAGMENTS(type)                                                                                  \
    asm volatile("mma.sync.aligned." type                                                                          \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                      \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]))
#else
namespace emulator {
struct Fragments {
    unsigned left[4], right[2];
};
// Towards zero, as tensor cores do it; what is too large is infinite.
inline float cut_off(double value) {
    const float nearest = (float)value;
    const bool rounded_up = __builtin_fabs(nearest) > __builtin_fabs(value) && !__builtin_isinf(nearest);
    return bits_to_float(float_to_bits(nearest) - rounded_up);
}
// `number(word, i)` is the i-th of the `packed` numbers in a word. Products and sums are exact to binary64 and cut off
// once; hardware cuts off every product too, at the last bit of the largest.
template <typename Number>
void multiply(float (&sums)[4], const unsigned* left, const unsigned* right, unsigned packed, Number number) {
    const Fragments mine = {{left[0], left[1], left[2], left[3]}, {right[0], right[1]}};
    collective(mine, [&](auto of) {
        Fragments row[4], columns[8];
        for (unsigned i = 0; i < 4; ++i) row[i] = of(lane() / 4 * 4 + i);
        for (unsigned i = 0; i < 8; ++i) columns[i] = of(lane() % 4 * 8 + i);
        for (unsigned i = 0; i < 4; ++i) {
            double sum = sums[i];
            for (unsigned word = 0; word < 8; ++word) {
                const unsigned a = row[word % 4].left[i / 2 + word / 4 * 2];
                const unsigned b = columns[i % 2 * 4 + word % 4].right[word / 4];
                for (unsigned half = 0; half < packed; ++half) sum += (double)number(a, half) * number(b, half);
            }
            sums[i] = cut_off(sum);
        }
        return 0;
    });
}
}  // namespace emulator
#endif

__device__ __forceinline__ void multiply_float16(float (&sums)[4], const unsigned (&left)[4], const unsigned* right) {
#ifdef __CUDACC_RTC__
    MULTIPLY_FRAGMENTS("m16n8k16.row.col.f32.f16.f16.f32");
#else
    emulator::multiply(sums, left, right, 2, [](unsigned word, unsigned half) {
        return half_to_float((unsigned short)(word >> 16 * half));
    });
#endif
}

__device__ __forceinline__ void multiply_bfloat16(float (&sums)[4], const unsigned (&left)[4], const unsigned* right) {
#ifdef __CUDACC_RTC__
    MULTIPLY_FRAGMENTS("m16n8k16.row.col.f32.bf16.bf16.f32");
#else
    emulator::multiply(sums, left, right, 2, [](unsigned word, unsigned half) {
        return bits_to_float(word >> 16 * half << 16);
    });
#endif
}

// The lower 13 bits of each word are not looked at.
__device__ __forceinline__ void multiply_tf32(float (&sums)[4], const unsigned (&left)[4], const unsigned* right) {
#ifdef __CUDACC_RTC__
    MULTIPLY_FRAGMENTS("m16n8k8.row.col.f32.tf32.tf32.f32");
#else
    emulator::multiply(sums, left, right, 1, [](unsigned word, unsigned) {
        return bits_to_float(word & 0xffffe000);
    });
#endif
}

// Products of tiles in shared memory by four warps, which go on meanwhile; compute capability 9.0 alone has them.
//
// A tile's rows are 128 bytes, eight chunks of 16; chunk c of row r lies at c ^ (r % 8), and row 0 begins at a multiple of 1024.
// What copies brought is shown by each thread that waited for its own, ahead of a barrier. Products that are begun and closed
// are done, and their sums may be looked at, once they are waited for.
__device__ __forceinline__ void show_copies() {
#ifdef __CUDACC_RTC__
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    emulator::show_copies();
#endif
}

__device__ __forceinline__ void begin_products() {
#ifdef __CUDACC_RTC__
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    emulator::begin_products();
#endif
}

__device__ __forceinline__ void close_products() {
#ifdef __CUDACC_RTC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    emulator::close_products();
#endif
}

// sums += left @ right: 64 rows of left by 128 rows of right, 32 bytes of k from where they begin: a tile's first row, or
// 32, 64 or 96 bytes on.
//
// Of fragment i a thread has columns 8 i + lane % 4 * 2 and the next: two sums of row lane / 4 of its warp's 16, two of the row 8 on.
#ifdef __CUDACC_RTC__
// Where a tile begins, in units of 16 bytes; 1024 bytes from eight rows to the next; swizzled by 128 bytes.
__device__ __forceinline__ unsigned long long described(const void* tile) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(tile);
    return (at & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
#define FRAGMENT(i) "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
#define MULTIPLY_TILES(type)                                                                                       \
    asm volatile(                                                                                                  \
        "{ .reg .pred added; setp.ne.b32 added, %66, 0;"                                                           \
        " wgmma.mma_async.sync.aligned.m64n128k16.f32." type                                                       \
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21,"    \
        " %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41,"     \
        " %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61,"     \
        " %62, %63}, %64, %65, added, 1, 1, 0, 0; }"                                                               \
        : FRAGMENT(0), FRAGMENT(1), FRAGMENT(2), FRAGMENT(3), FRAGMENT(4), FRAGMENT(5), FRAGMENT(6), FRAGMENT(7),  \
          FRAGMENT(8), FRAGMENT(9), FRAGMENT(10), FRAGMENT(11), FRAGMENT(12), FRAGMENT(13), FRAGMENT(14),          \
          FRAGMENT(15)                                                                                             \
        : "l"(described(left)), "l"(described(right)), "n"(1))
#else
namespace emulator {
inline unsigned short tile_bits(const void* tile, unsigned row, unsigned k) {
    const unsigned long long at = (unsigned long long)tile + row / 8 * 1024 + row % 8 * 128 + k * 2;
    return *(const unsigned short*)(at ^ (at >> 7 & 7) << 4);
}
// What this thread reads of both tiles: `row(i, k)` of its two rows, `column(i, k)` of its 32 columns, in a fixed order.
template <typename Each>
void each_number(const Product& product, Each each) {
    const unsigned row = threadIdx.x % 128 / WARP * 16 + lane() / 4, column = lane() % 4 * 2;
    for (unsigned k = 0; k < 16; ++k) {
        for (unsigned i = 0; i < 2; ++i) each(k, i, tile_bits(product.left, row + i * 8, k));
        for (unsigned i = 0; i < 32; ++i) each(k, 2 + i, tile_bits(product.right, i / 2 * 8 + column + i % 2, k));
    }
}
inline unsigned long long read(const Product& product) {
    unsigned long long all = 0;
    each_number(product, [&](unsigned, unsigned, unsigned short bits) { all = (all + bits + 1) * 2685821657736338717ull; });
    return all;
}
inline void multiply_later(float* sums, const void* left, const void* right, float (*number)(unsigned short)) {
    Product product = {sums, left, right, number, 0};
    product.read = read(product);
    queue(product);
}
inline void wait_for_products(unsigned groups) {
    Product product;
    while (due(groups, product)) {
        if (product.read != read(product)) fail("a tile changed while it was multiplied");
        float numbers[16][34];
        each_number(product, [&](unsigned k, unsigned i, unsigned short bits) { numbers[k][i] = product.number(bits); });
        for (unsigned i = 0; i < 64; ++i) {
            double sum = product.sums[i];
            for (unsigned k = 0; k < 16; ++k)
                sum += (double)numbers[k][i / 2 % 2] * numbers[k][2 + i / 4 * 2 + i % 2];
            product.sums[i] = cut_off(sum);
        }
    }
}
}  // namespace emulator
#endif

__device__ __forceinline__ void multiply_tiles_float16(float (&sums)[16][4], const void* left, const void* right) {
#ifdef __CUDACC_RTC__
    MULTIPLY_TILES("f16.f16");
#else
    emulator::multiply_later(sums[0], left, right, half_to_float);
#endif
}

__device__ __forceinline__ void multiply_tiles_bfloat16(float (&sums)[16][4], const void* left, const void* right) {
#ifdef __CUDACC_RTC__
    MULTIPLY_TILES("bf16.bf16");
#else
    emulator::multiply_later(sums[0], left, right, [](unsigned short bits) { return bits_to_float((unsigned)bits << 16); });
#endif
}

// Until all but the last GROUPS groups of products are done. The compiler takes all sums for changed here.
template <int GROUPS, int TILES>
__device__ __forceinline__ void wait_for_products(float (&sums)[TILES][16][4]) {
#ifdef __CUDACC_RTC__
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
#pragma unroll
    for (int i = 0; i < TILES * 64; ++i) asm volatile("" : "+f"(sums[i / 64][i / 4 % 16][i % 4])::"memory");
#else
    emulator::wait_for_products(GROUPS);
#endif
}
