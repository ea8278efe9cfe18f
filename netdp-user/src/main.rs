//! Entry point of the `netdp` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(cli) = netdp_user::cli::parse(std::env::args_os()) else {
        return ExitCode::FAILURE;
    };
    match netdp_user::cli::dispatch(cli) {
        Ok(code) => code,
        Err(err) => {
            netdp_user::cli::report(&err);
            ExitCode::FAILURE
        }
    }
}
