//! The `ravelin` command.

mod args;
mod audit;
mod inspect;
mod iso;
mod prepare;
mod run;
mod states;
mod status;

use args::{Args, Command, PolicyCommand};
use clap::Parser;
use ravelin::policy;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Iso(args) => iso::iso(&args),
        Command::Prepare(args) => prepare::prepare(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Audit(args) => audit::audit(&args),
        Command::Status { json } => status::status(json),
        Command::State(command) => states::run(&command),
        Command::Policy(PolicyCommand::Check { file }) => policy::load(&file).map(|policy| {
            anstream::print!("{}", policy::to_toml(&policy));
            ExitCode::SUCCESS
        }),
    };
    result.unwrap_or_else(|error| {
        anstream::eprintln!("ravelin: {error:#}");
        ExitCode::from(2)
    })
}
