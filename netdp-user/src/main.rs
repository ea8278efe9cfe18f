//! The `netdp` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    match netdp_user::cli::dispatch(netdp_user::cli::parse(std::env::args_os())) {
        Ok(code) => code,
        Err(err) => {
            // The log may be filtered; the last word never is.
            eprintln!("netdp: error: {err:#}");
            ExitCode::FAILURE
        }
    }
}
