/* Opens the CUDA driver by name, adds one to each of 256 numbers on the first device, and says what it found. The kernel is PTX,
 * which the driver compiles: no CUDA toolkit is needed to build this. */
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>

static const char PTX[] =
    ".version 6.0\n.target sm_50\n.address_size 64\n"
    ".visible .entry add_one(.param .u64 numbers)\n{\n"
    ".reg .b32 %r<3>;\n.reg .b64 %rd<4>;\n"
    "ld.param.u64 %rd1, [numbers];\ncvta.to.global.u64 %rd1, %rd1;\n"
    "mov.u32 %r1, %tid.x;\nmul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd3, %rd1, %rd2;\n"
    "ld.global.u32 %r2, [%rd3];\nadd.u32 %r2, %r2, 1;\nst.global.u32 [%rd3], %r2;\nret;\n}\n";

/* The driver's functions have one ABI on Linux; a handle is a pointer, an address on the device 64 bits. */
#define GET(name, ...) \
    int (*name)(__VA_ARGS__) = (int (*)(__VA_ARGS__))dlsym(cuda, #name); \
    if (!name) { puts("no " #name); return 2; }
#define DO(call) do { int status = call; if (status) { printf("%s: error %d\n", #call, status); return 1; } } while (0)

int main(void) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (!cuda) { puts(dlerror()); return 3; }
    GET(cuInit, unsigned)
    GET(cuDriverGetVersion, int *)
    GET(cuDeviceGetCount, int *)
    GET(cuDeviceGet, int *, int)
    GET(cuDeviceGetName, char *, int, int)
    GET(cuCtxCreate_v2, void **, unsigned, int)
    GET(cuModuleLoadData, void **, const void *)
    GET(cuModuleGetFunction, void **, void *, const char *)
    GET(cuMemAlloc_v2, unsigned long long *, size_t)
    GET(cuMemcpyHtoD_v2, unsigned long long, const void *, size_t)
    GET(cuMemcpyDtoH_v2, void *, unsigned long long, size_t)
    GET(cuLaunchKernel, void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **)
    GET(cuCtxSynchronize, void)
    int version, count, device;
    char name[256];
    void *context, *module, *function;
    unsigned long long numbers;
    unsigned host[256];
    for (unsigned i = 0; i < 256; i++) host[i] = i;
    DO(cuInit(0));
    DO(cuDriverGetVersion(&version));
    DO(cuDeviceGetCount(&count));
    DO(cuDeviceGet(&device, 0));
    DO(cuDeviceGetName(name, sizeof name, device));
    printf("CUDA %d, %d devices, the first: %s\n", version, count, name);
    DO(cuCtxCreate_v2(&context, 0, device));
    DO(cuModuleLoadData(&module, PTX));
    DO(cuModuleGetFunction(&function, module, "add_one"));
    DO(cuMemAlloc_v2(&numbers, sizeof host));
    DO(cuMemcpyHtoD_v2(numbers, host, sizeof host));
    void *arguments[] = {&numbers};
    DO(cuLaunchKernel(function, 1, 1, 1, 256, 1, 1, 0, NULL, arguments, NULL));
    DO(cuCtxSynchronize());
    DO(cuMemcpyDtoH_v2(host, numbers, sizeof host));
    for (unsigned i = 0; i < 256; i++) if (host[i] != i + 1) { printf("number %u is %u\n", i, host[i]); return 1; }
    puts("kernel: ok");
    return 0;
}
