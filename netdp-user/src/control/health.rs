//! `/livez` and `/readyz`, for the kubelet.

use super::{AgentStatus, Heartbeat};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{sleep, timeout};

/// Age of the last heartbeat from which the loop counts as hung: it turns at least with each sweep,
/// every five seconds, and the longest sweep measured took less than two.
const HANG_AFTER: Duration = Duration::from_secs(30);

/// Limit of concurrent connections, in all and from one address.
const MAX_CONNECTIONS: usize = 32;
const MAX_OF_ONE_ADDRESS: usize = 8;

/// Time limit for receiving a request's header, and for a whole connection.
const HEADER: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);

/// Size limit of a request, in bytes: the smallest that hyper accepts.
const REQUEST_BYTES: usize = 8192;

/// Serves probes forever; returns at once without a listener.
pub(super) async fn serve(
    listener: Option<TcpListener>,
    heartbeat: Arc<Heartbeat>,
    status: watch::Receiver<AgentStatus>,
) {
    let listener = match listener.map(tokio::net::TcpListener::from_std) {
        None => return,
        Some(Ok(listener)) => listener,
        Some(Err(error)) => {
            log::error!("serving /livez and /readyz: {error}");
            return;
        }
    };
    let mut connections = Connections::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                log::debug!("accepting a probe: {error}");
                // Probably out of file descriptors: a short pause may help.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (heartbeat, status) = (Arc::clone(&heartbeat), status.clone());
        let task = tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &heartbeat, &status.borrow());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER)
                .max_buf_size(REQUEST_BYTES)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(PATIENCE, connection).await {
                log::debug!("answering a probe: {error}");
            }
        });
        connections.admit(peer.ip().to_canonical(), task.abort_handle());
        // Lets evicted connections close, and pending requests be answered.
        yield_now().await;
    }
}

/// Open connections, the oldest first. A probe sends its request at once and is answered at once,
/// so the oldest connection is not an active probe.
#[derive(Debug, Default)]
struct Connections(VecDeque<(IpAddr, AbortHandle)>);

impl Connections {
    /// Adds a connection. At a limit, the oldest connection is evicted: of the same address, if
    /// that has reached its limit; otherwise of the address with most connections.
    fn admit(&mut self, from: IpAddr, task: AbortHandle) {
        self.0.retain(|(_, task)| !task.is_finished());
        let mut shares: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (address, _) in &self.0 {
            *shares.entry(*address).or_default() += 1;
        }
        let evicted = if shares
            .get(&from)
            .is_some_and(|share| *share >= MAX_OF_ONE_ADDRESS)
        {
            Some(from)
        } else if self.0.len() >= MAX_CONNECTIONS {
            let most = shares.values().copied().max();
            let oldest = self.0.iter().map(|(address, _)| *address);
            oldest
                .into_iter()
                .find(|address| shares.get(address).copied() == most)
        } else {
            None
        };
        let at =
            evicted.and_then(|evicted| self.0.iter().position(|(address, _)| *address == evicted));
        if let Some((_, task)) = at.and_then(|at| self.0.remove(at)) {
            task.abort();
        }
        self.0.push_back((from, task));
    }
}

fn answer(
    request: &Request<Incoming>,
    heartbeat: &Heartbeat,
    status: &AgentStatus,
) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/livez") => live(heartbeat.age()),
        (&Method::GET | &Method::HEAD, "/readyz") => ready(status),
        (&Method::GET | &Method::HEAD, _) => (
            StatusCode::NOT_FOUND,
            "not found: use /livez or /readyz\n".into(),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            "method not allowed: use GET or HEAD\n".into(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

fn live(age: Duration) -> (StatusCode, String) {
    if age < HANG_AFTER {
        return (StatusCode::OK, "ok: the agent's event loop runs\n".into());
    }
    let text = format!(
        "the agent's event loop has been stuck for {} s\n",
        age.as_secs()
    );
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

fn ready(status: &AgentStatus) -> (StatusCode, String) {
    if status.unready.is_empty() {
        let place = match status.uplinks.as_slice() {
            // iptables mode has no uplinks.
            [] => "by iptables rules".into(),
            uplinks => format!("on {}", uplinks.join(", ")),
        };
        let (hash, source) = (&status.hash, &status.source);
        let mut text = format!("ok: config {hash} from {source} in force {place}\n");
        if let Some(no_ebpf) = &status.no_ebpf {
            text += &format!(
                "iptables mode, because eBPF does not work here: {}\n",
                no_ebpf.why
            );
        }
        return (StatusCode::OK, text);
    }
    let text = format!("not ready: {}\n", status.unready.join("\nnot ready: "));
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_hangs_is_dead() {
        assert_eq!(live(Duration::from_secs(29)).0, StatusCode::OK);
        let (status, text) = live(Duration::from_secs(31));
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("31 s"), "{text}");
    }
}
