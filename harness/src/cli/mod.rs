//! The command line: flags, and one module per command.

mod args;
mod bench;
mod bench_backend;
mod compare;
mod data;
mod data_fetch;
mod describe;
mod dry_run;
mod leaderboard;
mod list;
mod logging;
mod metric;
mod model;
mod output;
mod plugin;
mod prepare;
mod run;
mod run_set;
mod score;
mod train;
mod validate;

pub use args::{Cli, Command, PrepareArgs};

use crate::failure::{Exit, Failure, Result};
use clap::builder::BoolishValueParser;
use clap::{ArgAction, CommandFactory, FromArgMatches};
use std::io::IsTerminal;
use std::path::Path;

/// Runs the program with the process's arguments and gives its exit code.
pub fn main() -> Exit {
    let arguments = with_run(std::env::args_os().collect());
    let matches = lenient(Cli::command()).get_matches_from(arguments);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    logging::start();
    // where no person reads, a path is not to be broken over lines
    let wrap = std::io::stderr().is_terminal();
    let form = move || miette::MietteHandlerOpts::new().wrap_lines(wrap).build();
    let _ = miette::set_hook(Box::new(move |_| Box::new(form())));
    match dispatch(cli.command) {
        Ok(exit) => exit,
        Err(failure) => {
            let exit = failure.exit();
            output::note(&format!("{:?}", miette::Report::new(*failure)));
            exit
        }
    }
}

/// A folder that is made, and must be new or empty.
fn new_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| Failure::io("create", path, &e))?;
    match std::fs::read_dir(path).map_err(|e| Failure::io("read", path, &e))?.next() {
        None => Ok(()),
        Some(_) => {
            Err(Failure::usage(format!("{} is not empty", path.display()))
                .help("name a new folder with --out"))
        }
    }
}

/// A command that takes `-1` for a value, so that it is named where it is wrong, and of whose switches the environment may
/// say `1`, `0`, `yes` or `no`.
fn lenient(command: clap::Command) -> clap::Command {
    let more = |arg: clap::Arg| match arg.get_action() {
        ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
        action if action.takes_values() => arg.allow_negative_numbers(true),
        _ => arg,
    };
    command.mut_args(more).mut_subcommands(lenient)
}

fn dispatch(command: Command) -> Result<Exit> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::List(args) => list::list(&args),
        Command::Describe(args) => describe::describe(&args),
        Command::Score(args) => score::score(&args),
        Command::Leaderboard(args) => leaderboard::leaderboard(&args),
        Command::Compare(args) => compare::compare(&args),
        Command::Metric(args) => metric::metric(&args),
        Command::Model(args) => model::model(&args),
        Command::Data(args) => data::data(&args),
        Command::Prepare(args) => prepare::prepare(&args),
        Command::Train(args) => train::train(&args),
        Command::Validate(args) => validate::validate(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Plugin(args) => plugin::plugin(&args),
        Command::Completions(args) => Ok(args.print()),
    }
}

/// `e2llm-bench --tasks ...` is short for `e2llm-bench run --tasks ...`.
fn with_run(mut args: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let first = args.get(1).and_then(|a| a.to_str()).unwrap_or_default();
    if first.starts_with("--") && !matches!(first, "--help" | "--version" | "--") {
        args.insert(1, "run".into());
    }
    args
}
