//! The program `e2llm-bench`.

fn main() {
    std::process::exit(e2llm_harness::cli::main() as i32);
}
