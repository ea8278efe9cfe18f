//! Entry point of the `netdp` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(cli) = netdp_user::cli::parse(std::env::args_os()) else {
        return ExitCode::FAILURE;
    };
    match netdp_user::cli::dispatch(cli) {
        Ok(code) => code,
        Err(err) => {
            // The log may be filtered; the final error message is not.
            let said = format!("{err:#}");
            eprintln!("netdp: error: {}", netdp_user::terminal::lines(&said));
            ExitCode::FAILURE
        }
    }
}
