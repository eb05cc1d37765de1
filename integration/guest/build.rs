//! Hands the linker the layout of the guest's image, wherever the checkout is.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".into());
    println!("cargo:rustc-link-arg-bins=-T{folder}/src/image.ld");
    println!("cargo:rerun-if-changed=src/image.ld");
    println!("cargo:rerun-if-changed=src/boot.s");
}
