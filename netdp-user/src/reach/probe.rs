//! `netdp probe`: connections from the node's own address, whose answers the programs count.

use crate::cli::output::write_out;
use anyhow::Result;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Opens TCP connections, one after the other, and prints whether each was answered. A refused
/// connection was answered: packets come back. Returns whether any was.
///
/// # Errors
/// Returns an error if no connection can be begun, or the output cannot be written.
pub(crate) fn probe(to: SocketAddr, count: u32, timeout: Duration) -> Result<bool> {
    let (mut lines, mut answered) = (String::new(), 0);
    for _ in 0..count {
        let begin = Instant::now();
        let (word, is_answer) = match TcpStream::connect_timeout(&to, timeout) {
            Ok(stream) => match stream.local_addr() {
                Ok(own) => (format!("connected from {}", own.ip()), true),
                Err(_) => ("connected".to_owned(), true),
            },
            Err(err) if err.kind() == ErrorKind::ConnectionRefused => (
                "refused: by a reset, so that the way back exists, or by a firewall".to_owned(),
                true,
            ),
            Err(err) if err.kind() == ErrorKind::TimedOut => ("no answer".to_owned(), false),
            // Of a router or of the node itself: nobody there has answered.
            Err(err) => (err.to_string(), false),
        };
        answered += u32::from(is_answer);
        let took = begin.elapsed().as_millis();
        lines += &format!("{to}: {word}, after {took} ms\n");
    }
    let headline = format!("{answered} of {count} connections of the node to {to} were answered\n");
    write_out(&(headline + &lines), false)?;
    Ok(answered > 0)
}
