//! `cargo xtask test`: every check there is, the quick ones first. It stops at the first kind of
//! check that fails, and ends with one line that counts.

use crate::build::{FREESTANDING, On, build, build_hypervisor};
use crate::packages::{Flavour, Kernel};
use crate::progress::step;
use crate::shell::{command, run as run_command, succeeds};
use crate::{e2e, packages};
use anyhow::{Context, ensure};
use std::ffi::OsString;
use std::process::Command;

/// The variable that names the real kernels which unit tests read, with `:` between their paths.
const KERNELS: &str = "RAVELIN_TEST_KERNELS";

/// What can be typed after `test`.
#[derive(clap::Args)]
pub struct Args {
    /// Run the stress tests for a minute instead of ten seconds
    #[arg(long)]
    full: bool,
    /// Run only the end-to-end tests whose names contain this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

const FLAVOURS: [Flavour; 2] = [Flavour::Cloud, Flavour::Generic];

/// Checks that passed and failed.
#[derive(Default)]
pub struct Tally {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
}

/// Runs the command; whether everything passed.
///
/// # Errors
/// Nothing could be tested.
pub fn run(args: &Args, install: bool) -> anyhow::Result<bool> {
    let mut tally = Tally::default();
    let result = run_all(args, install, &mut tally);
    if let Err(error) = &result {
        tally.failed += 1;
        anstream::eprintln!("{error:#}");
    }
    anstream::println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally.failed == 0)
}

fn run_all(args: &Args, install: bool, tally: &mut Tally) -> anyhow::Result<()> {
    let kernels = packages::prepare(&FLAVOURS, install)?;
    if args.full {
        packages::install(packages::BROWSER, install)?;
    }
    if args.only.is_none() {
        check_sources(&kernels, install, tally)?;
    }
    let built = build(&FLAVOURS, &[On::Qemu, On::Bochs], install)?;
    e2e::run(&built, args.full, install, args.only.as_deref(), tally)
}

fn check_sources(kernels: &[Kernel], install: bool, tally: &mut Tally) -> anyhow::Result<()> {
    for component in ["fmt", "clippy"] {
        component_is_there(component, install)?;
    }
    check("format", tally, &mut command("cargo", &["fmt", "--all", "--check"]))?;
    // The hypervisor is built alone: see `build_hypervisor`.
    let without = FREESTANDING.map(|name| ["--exclude", name]);
    let programs: Vec<&str> =
        ["--workspace"].into_iter().chain(without.into_iter().flatten()).collect();
    let hypervisor: Vec<&str> = FREESTANDING.iter().flat_map(|name| ["--package", name]).collect();
    for (name, packages) in [("programs", &programs[..]), ("hypervisor", &hypervisor[..])] {
        let mut lints = command("cargo", &["clippy", "--quiet", "--all-targets"]);
        lints.args(packages).args(["--", "-D", "warnings"]);
        check(&format!("lints, {name}"), tally, &mut lints)?;
    }
    step("build the hypervisor", build_hypervisor)?;
    // What the hypervisor decides is in the crates, where it is tested.
    let mut tests = command("cargo", &["test"]);
    tests.args(&programs).env(KERNELS, named_kernels(kernels)?);
    let tests = check("unit tests", tally, &mut tests)?;
    tally.passed += passed_in(&tests);
    for (name, packages) in [("programs", &programs[..]), ("hypervisor", &hypervisor[..])] {
        let mut docs = command("cargo", &["doc", "--quiet", "--no-deps"]);
        docs.args(["--document-private-items"]).args(packages);
        check(&format!("documentation, {name}"), tally, docs.env("RUSTDOCFLAGS", "-D warnings"))?;
    }
    Ok(())
}

/// The kernels that were fetched, and those that the caller names.
fn named_kernels(fetched: &[Kernel]) -> anyhow::Result<OsString> {
    let given = std::env::var_os(KERNELS).unwrap_or_default();
    let fetched = fetched.iter().map(|kernel| kernel.image.clone());
    Ok(std::env::join_paths(fetched.chain(std::env::split_paths(&given)))?)
}

fn check(name: &str, tally: &mut Tally, command: &mut Command) -> anyhow::Result<String> {
    let text = step(name, || run_command(command))?;
    tally.passed += 1;
    Ok(text)
}

/// How many tests `cargo test` says have passed.
fn passed_in(text: &str) -> usize {
    let results = text.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    results.filter_map(|result| result.split(' ').next()?.parse::<usize>().ok()).sum()
}

fn component_is_there(name: &str, install: bool) -> anyhow::Result<()> {
    let there = || succeeds(&mut command("cargo", &[name, "--version"]));
    let component = if name == "fmt" { "rustfmt" } else { name };
    if !there() && install {
        let add = &mut command("rustup", &["component", "add", component]);
        step(&format!("install {component}"), || run_command(add).map(drop))
            .with_context(|| format!("cargo {name} is missing; install {component} by hand"))?;
    }
    ensure!(there(), "cargo {name} is missing; run: rustup component add {component}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_tests_are_added_up() {
        let text = "test a ... ok\ntest result: ok. 12 passed; 0 failed\n\n\
                    test result: ok. 3 passed; 0 failed\n";
        assert_eq!(passed_in(text), 15);
    }
}
