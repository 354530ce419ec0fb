//! The `ravelin` command.

mod args;
mod audit;
mod inside;
mod inspect;
mod iso;
mod prepare;
mod run;
mod states;

use anyhow::Context;
use args::{Args, Command, PolicyCommand};
use clap::Parser;
use ravelin::{cache, check, policy, task};
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Iso(args) => iso::iso(&args),
        Command::Prepare(args) => prepare::prepare(&args),
        Command::Task(args) => task(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Audit(args) => audit::audit(&args),
        Command::Status { json, audit } => inside::status(json, audit),
        Command::Events(args) => inside::events(&args),
        Command::Metrics(args) => inside::metrics(&args),
        Command::State(command) => states::run(&command),
        Command::Policy(PolicyCommand::Check { file }) => policy::load(&file).map(|file| {
            anstream::print!("{}", file.to_toml());
            ExitCode::SUCCESS
        }),
    };
    result.unwrap_or_else(|error| {
        anstream::eprintln!("ravelin: {error:#}");
        ExitCode::from(2)
    })
}

/// Writes the image of a task.
fn task(args: &args::Task) -> anyhow::Result<ExitCode> {
    let name = args.name.clone().unwrap_or_else(|| task::name(&args.program));
    let program = check::read("program", &args.program)?;
    let image = task::convert(&program, &name)
        .with_context(|| format!("{} cannot be a task", args.program.display()))?;
    cache::write_atomically(&args.output, &image)?;
    Ok(ExitCode::SUCCESS)
}
