//! The connections to the agent's socket, a task each.

use super::hub::{LostShare, locked};
use super::{Event, Kind, Lost, PerKind, Reply, Request};
use anyhow::{Context as _, Result, bail};
use netdp_common::layout::{EVENT_RATE, event_rate};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// The longest request, in bytes.
const REQUEST: u64 = 4096;

/// Time for a request to arrive, and for the programs to be told what to report.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause after the socket has accepted nothing, and before another attempt to get the ring buffer.
const PAUSE: Duration = Duration::from_millis(150);

/// Attempts to get the ring buffer: another reader gives it up within a second.
const ATTEMPTS: u32 = 20;

/// Bytes of lines that are written at once.
const AT_ONCE: usize = 64 * 1024;

/// A request of a connection to the hub.
pub(super) enum Command {
    /// To listen.
    Listen {
        kinds: Vec<Kind>,
        rate: u32,
        reply: oneshot::Sender<Result<Given, String>>,
    },
    /// To have all passed on that has happened so far.
    Settle { reply: oneshot::Sender<()> },
    /// Not to listen any more.
    Leave { number: u64 },
    /// The packet of an event.
    Recall {
        id: u16,
        reply: oneshot::Sender<Option<Event>>,
    },
}

/// The hub's answer to a new listener.
pub(super) struct Given {
    /// Its number.
    pub number: u64,
    /// The lines with events.
    pub lines: mpsc::Receiver<Arc<str>>,
    /// Numbers of events that were lost since it was told last.
    pub lost: LostShare,
    /// The bits that it needs in `Settings::events`.
    pub setting: u32,
}

/// The way of connections to the hub, and to the settings.
#[derive(Clone)]
pub(super) struct Commands {
    hub: mpsc::Sender<Command>,
    applied: watch::Receiver<u32>,
}

impl Commands {
    pub(super) const fn new(hub: mpsc::Sender<Command>, applied: watch::Receiver<u32>) -> Self {
        Self { hub, applied }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let sent = self.hub.send(command(reply)).await;
        sent.ok().context("the agent is ending")?;
        answer.await.context("the agent is ending")
    }

    /// Waits until the programs report what a listener needs. Returns the rate.
    async fn report(&mut self, needed: u32) -> Result<u32> {
        if needed == 0 {
            return Ok(EVENT_RATE);
        }
        let kinds = needed & 0xff;
        let is_enough = |now: &u32| now & kinds == kinds && event_rate(*now) >= event_rate(needed);
        let waited = timeout(PATIENCE, self.applied.wait_for(is_enough)).await;
        let now = waited.context("the agent is busy; try again")?;
        Ok(event_rate(*now.context("the agent is ending")?))
    }
}

/// Accepts connections for ever.
pub(super) async fn accept(socket: UnixListener, commands: Commands) {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                let commands = commands.clone();
                tokio::task::spawn_local(async move {
                    if let Err(err) = serve(stream, commands).await {
                        log::debug!("a listener of events: {err:#}");
                    }
                });
            }
            Err(err) => {
                log::debug!("accepting a listener of events: {err}");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, commands: Commands) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    let mut limited = (&mut reader).take(REQUEST);
    timeout(PATIENCE, limited.read_line(&mut line)).await??;
    let served = match serde_json::from_str(&line) {
        Ok(Request::Listen { kinds, rate }) => {
            listen(&mut reader, &mut writer, commands, kinds, rate).await
        }
        Ok(Request::Recall { id }) => recall(&mut writer, &commands, id).await,
        Err(err) => Err(err).context("a request of another version"),
    };
    if let Err(err) = &served {
        let text = format!("{err:#}");
        // It may be gone.
        let _ = writer
            .write_all(Reply::Error { text }.line().as_bytes())
            .await;
    }
    served
}

async fn recall(writer: &mut OwnedWriteHalf, commands: &Commands, id: u16) -> Result<()> {
    let event = commands.ask(|reply| Command::Recall { id, reply }).await?;
    let Some(event) = event else {
        bail!(
            "the agent remembers no event {}: it keeps the last 200 kinds of refused and dropped \
             packets that were listened to since its start",
            super::format_id(id)
        );
    };
    let reply = Reply::Recalled(event);
    Ok(writer.write_all(reply.line().as_bytes()).await?)
}

async fn listen(
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    mut commands: Commands,
    kinds: Vec<Kind>,
    rate: u32,
) -> Result<()> {
    let mut attempt = 0;
    let mut given = loop {
        let kinds = kinds.clone();
        let given = commands.ask(|reply| Command::Listen { kinds, rate, reply });
        match given.await? {
            Ok(given) => break given,
            Err(err) if attempt == ATTEMPTS => bail!("{err}"),
            Err(_) => attempt += 1,
        }
        sleep(PAUSE).await;
    };
    let number = given.number;
    let listened = pass(reader, writer, &mut commands, &mut given).await;
    let left = commands.hub.send(Command::Leave { number }).await;
    listened?;
    left.ok().context("the agent is ending")?;
    writer.shutdown().await?;
    Ok(())
}

/// Passes lines on until the other end has closed its half.
async fn pass(
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
    commands: &mut Commands,
    given: &mut Given,
) -> Result<()> {
    let rate = commands.report(given.setting).await?;
    let begin = Reply::Listening { rate }.line();
    writer.write_all(begin.as_bytes()).await?;
    let mut told = interval(Duration::from_secs(1));
    told.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rest = [0; 16];
    loop {
        tokio::select! {
            line = given.lines.recv() => {
                let line = line.context("the agent is ending")?;
                write_lines(writer, &mut given.lines, &line).await?;
            }
            _ = told.tick() => tell_lost(writer, &given.lost).await?,
            read = reader.read(&mut rest) => if read? == 0 { break },
        }
    }
    commands.ask(|reply| Command::Settle { reply }).await?;
    while let Ok(line) = given.lines.try_recv() {
        write_lines(writer, &mut given.lines, &line).await?;
    }
    tell_lost(writer, &given.lost).await?;
    Ok(writer.write_all(Reply::End.line().as_bytes()).await?)
}

/// Writes a line and those that wait behind it.
async fn write_lines(
    writer: &mut OwnedWriteHalf,
    lines: &mut mpsc::Receiver<Arc<str>>,
    first: &str,
) -> Result<()> {
    let mut text = first.to_owned();
    while text.len() < AT_ONCE
        && let Ok(line) = lines.try_recv()
    {
        text += &line;
    }
    Ok(writer.write_all(text.as_bytes()).await?)
}

/// Tells what was lost since that was told last.
async fn tell_lost(writer: &mut OwnedWriteHalf, lost: &LostShare) -> Result<()> {
    let lost: PerKind<Lost> = std::mem::take(&mut *locked(lost));
    let list = lost.list();
    if list.is_empty() {
        return Ok(());
    }
    Ok(writer
        .write_all(Reply::Lost(list).line().as_bytes())
        .await?)
}
