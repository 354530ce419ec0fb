//! What a developer types: `cargo xtask demo`, `test`, `bench`, `fuzz`, `bochs`, `packages`.

mod apt;
mod audit;
mod bench;
mod bochs;
mod boot;
mod build;
mod demo;
mod e2e;
mod ending;
mod fuzz;
mod guest_image;
mod heki;
mod inside;
mod iso;
mod judge;
mod lives;
mod packages;
mod policies;
mod probes;
mod progress;
mod refusals;
mod requests;
mod restore;
mod ret2dir;
mod shell;
mod tasks;
mod test;
mod trace;
mod userland;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Builds, demonstrates, tests and measures Ravelin.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// Only list the packages that are missing; install nothing
    #[arg(long, global = true)]
    no_install: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Attack a kernel without Ravelin and under it, and show what happened
    Demo(demo::Args),
    /// Check everything: format, lints, unit tests, documentation, end-to-end boots
    Test(test::Args),
    /// Measure what Ravelin costs, in instructions, time and exits
    Bench(bench::Args),
    /// Fuzz what a hostile kernel can say by Heki's hypercalls
    Fuzz(fuzz::Args),
    /// Build Bochs, the Intel machine of the other commands, and print where it is
    Bochs,
    /// List the Debian packages that the other commands need
    Packages,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let install = !args.no_install;
    let result = match args.command {
        Command::Demo(demo) => demo::run(&demo, install),
        Command::Test(test) => test::run(&test, install),
        Command::Bench(bench) => bench::run(&bench, install),
        Command::Fuzz(fuzz) => fuzz::run(&fuzz, install),
        Command::Bochs => bochs::prepare(install).map(|program| {
            anstream::println!("{}", program.display());
            true
        }),
        Command::Packages => list_packages(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            anstream::eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list_packages() -> anyhow::Result<bool> {
    for (name, installed) in packages::list()? {
        anstream::println!("{name} {}", if installed { "installed" } else { "missing" });
    }
    Ok(true)
}
