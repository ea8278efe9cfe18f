//! The `netdp` command.

use clap::Parser as _;
use netdp_user::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    match netdp_user::cli::dispatch(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            // The log may be filtered; the last word never is.
            eprintln!("netdp: error: {err:#}");
            ExitCode::FAILURE
        }
    }
}
