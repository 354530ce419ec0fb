//! `cargo xtask fuzz`: coverage-guided fuzzing of Heki's hypercalls, on stable Rust.
//!
//! The coverage comes from a pass of LLVM, which a stable compiler runs when told by `-C passes`;
//! only the sanitizers want a nightly one, and there is no unsafe code in what is fuzzed.

use crate::packages;
use crate::progress::step;
use crate::shell::{command, run as run_command, target};
use anyhow::Context;
use std::path::PathBuf;

/// What can be typed after `fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// How long
    #[arg(long, value_name = "N", default_value = "60")]
    seconds: u32,
}

/// libFuzzer is built from its source.
pub const PACKAGES: &[&str] = &["g++"];
/// Longest input in bytes: three pages of a list, nearly full.
const LONGEST: u32 = 4096;
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What libFuzzer wants: counters of edges, the table of their places, and what is compared.
const INSTRUMENTED: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Runs the command, which goes on with the inputs that earlier runs have found.
///
/// # Errors
/// It does not build, or an input broke a rule: the message names the file that holds it.
pub fn run(args: &Args, install: bool) -> anyhow::Result<bool> {
    packages::install(PACKAGES, install)?;
    let folder = target().join("fuzz");
    let program = step("build the fuzzer", || build(&folder))?;
    let (corpus, found) = (folder.join("corpus"), folder.join("found"));
    for folder in [&corpus, &found] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut fuzzer = command(&program.display().to_string(), &[]);
    fuzzer.arg(&corpus).arg(format!("-artifact_prefix={}/", found.display()));
    fuzzer.arg(format!("-max_total_time={}", args.seconds)).arg(format!("-max_len={LONGEST}"));
    // A second is a hang: thousands of inputs are usual in one.
    fuzzer.args(["-timeout=5", "-print_final_stats=1"]);
    step(&format!("fuzz for {} s", args.seconds), || run_command(&mut fuzzer))?;
    Ok(true)
}

fn build(folder: &PathBuf) -> anyhow::Result<PathBuf> {
    // With a target named, build scripts and macros are not instrumented.
    let mut cargo = command("cargo", &["build", "--release", "--quiet", "--target", TRIPLE]);
    cargo.args(["--manifest-path", "fuzz/Cargo.toml"]).env("CARGO_TARGET_DIR", folder);
    run_command(cargo.env("RUSTFLAGS", INSTRUMENTED.join(" ")))?;
    Ok(folder.join(TRIPLE).join("release/fuzz"))
}
