//! Scene: the configuration is edited under traffic. New connections follow it at once; open ones
//! are not affected.

use super::clients::source_by_curl;
use super::table::Seen;
use super::{narrate, show_mappings, start_agent};
use crate::shell;
use anyhow::{Context as _, Result, anyhow, ensure};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};
use testbed::{Bed, ConfigVolume, EchoClient, EchoServer, Host, HttpServer, Running};

const EVERYTHING: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
";

const NOT_THE_NEIGHBOURS: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- 10.1.0.0/16
";

const HEALTH: &str = "http://10.1.0.20/health";

/// Maximum time until a change is in force for a client.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Duration of the traffic after the change.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// Number of connections that stay open throughout.
const OPEN: usize = 20;

/// Minimum duration of the download.
const DOWNLOAD_SECONDS: usize = 6;
const DOWNLOAD_LASTS_AT_MOST: Duration = Duration::from_secs(30);

/// One request: its start time and the source that the server saw.
struct Request {
    began: Instant,
    ended: Instant,
    source: IpAddr,
}

/// Connections that stayed open: number of echoes, and their only source.
struct Open {
    clients: Vec<(EchoClient, SocketAddr)>,
    echoes: usize,
}

pub fn run(netdp: &Path) -> Result<()> {
    narrate(
        "A host of the node's own network, which reaches pods directly, is masqueraded at first. \
         Then 10.1.0.0/16\nbecomes a nonMasqueradeCIDR, while a download, 20 open connections and \
         a loop of requests run.",
    );
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .pods(2, &["172.16.0.0/16"])
        .build()?;
    let near = bed.neighbour(0, &["10.1.0.20/16"])?;
    let _http = HttpServer::start(&near, (near.v4()?, 80))?;
    let big = HttpServer::start(&near, (near.v4()?, 8080))?;
    let _echo = EchoServer::start(&near, (near.v4()?, 7))?;
    let mut config = ConfigVolume::new(EVERYTHING)?;
    let agent = start_agent(netdp, &bed, &config, &[])?;

    let download = start_download(&bed.pods[1])?;
    let stop = AtomicBool::new(false);
    let (sender, requests) = channel();
    let text = std::thread::scope(|scope| {
        let open = hold_open(scope, &bed.pods[1], &near, &stop);
        let looping = scope.spawn(|| request_until(&bed.pods[0], &stop, &sender));
        let change = watch_change(&mut config, &bed, &requests);
        // The loops must end even if the change failed.
        stop.store(true, Ordering::Relaxed);
        let open = join(open?);
        let count = join(looping);
        let change = change?;
        Ok::<_, anyhow::Error>((change, open?, count?))
    });
    let (in_force, open, requests) =
        text.with_context(|| format!("the agent's log:\n{}", agent.log()))?;
    finish_download(download)?;

    let mut seen = Seen::new();
    let (pod_ip, node_ip) = (bed.pods[0].v4()?, bed.uplinks[0].v4()?);
    seen.row(
        "before",
        "curl, new connections",
        "200",
        node_ip.into(),
        "masqueraded",
    );
    seen.row(
        "after",
        "curl, new connections",
        "200",
        pod_ip.into(),
        "10.1.0.0/16 is bypassed now",
    );
    seen.row(
        "throughout",
        &format!("{OPEN} open connections"),
        &format!("{} echoes", open.echoes),
        open.clients[0].1.ip(),
        "a mapping outlives the policy that made it",
    );
    seen.row(
        "throughout",
        "curl, one download",
        &format!("{} bytes", HttpServer::paced_bytes(DOWNLOAD_SECONDS)),
        *big.seen()
            .first()
            .context("the download's server saw none")?,
        "so does this one",
    );
    seen.print();
    println!(
        "The change was in force for a new connection {} ms after the edit; {requests} requests, \
         none lost.",
        in_force.as_millis()
    );
    show_mappings(&agent, &bed.pods[1])
}

fn start_download(pod: &Host) -> Result<Running> {
    pod.spawn(&[
        "curl",
        "--silent",
        "--show-error",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code} %{size_download}",
        &format!("http://10.1.0.20:8080/seconds/{DOWNLOAD_SECONDS}"),
    ])
}

fn finish_download(mut download: Running) -> Result<()> {
    ensure!(
        download.exit_status()?.is_none(),
        "the download ended before the change was in force: {}",
        download.written()
    );
    shell::progress("waiting for the download's end");
    let result = download.finish(DOWNLOAD_LASTS_AT_MOST)?;
    let all = HttpServer::paced_bytes(DOWNLOAD_SECONDS);
    ensure!(
        result == format!("200 {all}"),
        "the download got {result:?} instead of all its bytes"
    );
    Ok(())
}

/// Edits the configuration and returns the time until a connection opened after the edit follows
/// it. Requests before and after must match the configuration.
fn watch_change(
    config: &mut ConfigVolume,
    bed: &Bed,
    requests: &Receiver<Request>,
) -> Result<Duration> {
    let pod = IpAddr::from(bed.pods[0].v4()?);
    let node = IpAddr::from(bed.uplinks[0].v4()?);
    for _ in 0..10 {
        let source = next(requests)?.source;
        ensure!(source == node, "before the edit a server saw {source}");
    }
    shell::progress("editing the configuration while traffic runs");
    let edited = Instant::now();
    config.write(NOT_THE_NEIGHBOURS)?;
    let in_force = loop {
        let request = next(requests)?;
        if request.began > edited && request.source == pod {
            break request.ended - edited;
        }
        let waited = request.ended - edited;
        ensure!(
            waited < AT_ONCE,
            "the edit is not in force after {waited:?}: a server still saw {}",
            request.source
        );
    };
    let end = Instant::now() + AFTERWARDS;
    while Instant::now() < end {
        let source = next(requests)?.source;
        ensure!(source == pod, "after the change a server saw {source}");
    }
    Ok(in_force)
}

fn next(requests: &Receiver<Request>) -> Result<Request> {
    requests
        .recv_timeout(Duration::from_secs(5))
        .map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!("no request got through for 5 s"),
            RecvTimeoutError::Disconnected => anyhow!("the loop of requests ended"),
        })
}

/// Sends requests one after the other until stopped; returns the first failure as an error.
fn request_until(pod: &Host, stop: &AtomicBool, done: &Sender<Request>) -> Result<usize> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let source = source_by_curl(pod, HEALTH).context("a request was lost")?;
        let ended = Instant::now();
        count += 1;
        done.send(Request {
            began,
            ended,
            source,
        })?;
    }
    Ok(count)
}

/// Opens connections and exchanges lines on all of them until stopped; the source of each must stay
/// the same.
fn hold_open<'scope>(
    scope: &'scope Scope<'scope, '_>,
    pod: &Host,
    server: &Host,
    stop: &'scope AtomicBool,
) -> Result<ScopedJoinHandle<'scope, Result<Open>>> {
    let at: SocketAddr = (server.v4()?, 7).into();
    let mut clients = (0..OPEN)
        .map(|_| {
            let mut client = EchoClient::connect(pod, at, super::TIME_OUT)?;
            let source = client.ask()?;
            Ok((client, source))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(scope.spawn(move || {
        let mut echoes = 0;
        while !stop.load(Ordering::Relaxed) {
            for (client, before) in &mut clients {
                let now = client.ask().context("an open connection was lost")?;
                ensure!(
                    now == *before,
                    "an open connection moved: {before} to {now}"
                );
                echoes += 1;
            }
            // Leaves CPU time to the rest of the machine.
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Open { clients, echoes })
    }))
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("a thread of the demo panicked"))?
}
