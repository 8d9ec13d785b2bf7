//! Hands the target triple to the crate: a plugin states what it was built for.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=E2LLM_TARGET={}", std::env::var("TARGET").unwrap_or_default());
}
