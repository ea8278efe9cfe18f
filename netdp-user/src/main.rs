//! The `netdp` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    match netdp_user::cli::dispatch(netdp_user::cli::parse(std::env::args_os())) {
        Ok(code) => code,
        Err(err) => {
            // The log may be filtered; the last word never is.
            let said = format!("{err:#}");
            eprintln!("netdp: error: {}", netdp_user::terminal::lines(&said));
            ExitCode::FAILURE
        }
    }
}
