//! The `netdp` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(cli) = netdp_user::cli::parse(std::env::args_os()) else {
        return ExitCode::FAILURE;
    };
    match netdp_user::cli::dispatch(cli) {
        Ok(code) => code,
        Err(err) => {
            // The log may be filtered; the last word never is.
            let said = format!("{err:#}");
            eprintln!("netdp: error: {}", netdp_user::terminal::lines(&said));
            ExitCode::FAILURE
        }
    }
}
