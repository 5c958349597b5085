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

// Shared memory whose size a launch gives, beginning at a multiple of 16 bytes.
#ifdef __CUDACC_RTC__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define DYNAMIC_SHARED(name) unsigned char* const name = emulator::dynamic_memory
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
