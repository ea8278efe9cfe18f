//! A continuous TCP stream.

use super::SOON;
use super::clients::{any, tcp_stream};
use anyhow::{Context as _, Result, bail, ensure};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use testbed::{Netns, wait_for};

/// Numbers per block, and the pause after it, which leaves CPU time to the rest of the machine: at
/// most some 32 MB/s.
const BLOCK: u64 = 4096;
const PACE: Duration = Duration::from_millis(1);

/// Amount that must arrive to prove progress: more than the socket buffers hold.
const MUCH: u64 = 4 << 20;

/// A stream of bytes from a client to a server, each compared on arrival, until
/// [`finish`](Self::finish).
#[derive(Debug)]
pub struct Transfer {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<()>>,
}

impl Transfer {
    /// Starts a transfer to a free port of `to`, an address of `server`.
    pub fn start(client: &Netns, server: &Netns, to: IpAddr) -> Result<Self> {
        let listener = server.enter(|| TcpListener::bind((to, 0)))??;
        let to = listener.local_addr()?;
        let out = tcp_stream(client, any(to), to)?;
        let (back, _) = listener.accept().context("the connection that was made")?;
        back.set_read_timeout(Some(SOON))?;
        let (stop, arrived) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (told, count) = (Arc::clone(&stop), Arc::clone(&arrived));
        Ok(Self {
            stop,
            arrived,
            sender: std::thread::spawn(move || send(out, &told)),
            receiver: std::thread::spawn(move || receive(back, &count)),
        })
    }

    /// Waits until data sent after the call has arrived.
    pub fn goes_on(&self) -> Result<()> {
        let before = self.arrived.load(Ordering::Relaxed);
        wait_for(SOON, "the transfer to go on", || {
            self.receiver.is_finished() || self.arrived.load(Ordering::Relaxed) > before + MUCH
        })?;
        ensure!(!self.receiver.is_finished(), "the transfer is over");
        Ok(())
    }

    /// Ends the transfer; all sent data must arrive.
    pub fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = joined(self.sender)?;
        joined(self.receiver)?;
        let arrived = self.arrived.load(Ordering::Relaxed);
        ensure!(arrived == sent, "{arrived} of {sent} bytes arrived");
        Ok(())
    }
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(_) => bail!("a thread of the transfer panicked"),
    }
}

/// Sends the numbers from 0 on; returns the number of bytes.
fn send(mut stream: TcpStream, stop: &AtomicBool) -> Result<u64> {
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        let block: Vec<u8> = (next..next + BLOCK).flat_map(u64::to_le_bytes).collect();
        stream.write_all(&block).context("sending")?;
        next += BLOCK;
        std::thread::sleep(PACE);
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(next * 8)
}

fn receive(mut stream: TcpStream, arrived: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let count = stream.read(&mut buffer).context("receiving")?;
        if count == 0 {
            return Ok(());
        }
        for byte in &buffer[..count] {
            let wanted = (at / 8_u64).to_le_bytes()[usize::try_from(at % 8)?];
            ensure!(*byte == wanted, "byte {at} is {byte}, not {wanted}");
            at += 1;
        }
        arrived.store(at, Ordering::Relaxed);
    }
}
