//! Linker options of the eBPF object.

fn main() {
    // bpf-linker's default keeps LLVM from expanding memset in line. A call of
    // memset returns a pointer into the stack, which the verifier refuses.
    println!("cargo:rustc-link-arg=--disable-expand-memcpy-in-order");
    println!("cargo:rerun-if-changed=build.rs");
}
