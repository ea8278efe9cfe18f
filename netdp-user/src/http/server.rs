//! The server itself: its listener, and its limits on connections.

use super::{Request, Response, Routes};
use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{sleep, timeout};

/// Limit of concurrent connections, in all and from one address.
const MAX_CONNECTIONS: usize = 32;
const MAX_OF_ONE_ADDRESS: usize = 8;

/// Time limit for receiving a request's header, and for a whole connection.
const HEADER: Duration = Duration::from_secs(1);
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Size limit of a request, in bytes: the smallest that hyper accepts.
const REQUEST_BYTES: usize = 8192;

/// Listens on an address that a flag gives.
///
/// # Errors
/// Returns an error if the address cannot be listened on.
pub(crate) fn listen(at: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(at)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .with_context(|| format!("listening on {at} ({flag})"))
}

/// Serves the routes forever; returns at once without a listener.
pub(crate) async fn serve(listener: Option<TcpListener>, routes: Routes) {
    let listener = match listener.map(tokio::net::TcpListener::from_std) {
        None => return,
        Some(Ok(listener)) => listener,
        Some(Err(error)) => {
            log::error!("serving HTTP requests: {error}");
            return;
        }
    };
    let routes = Arc::new(routes);
    let mut connections = Connections::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                log::debug!("accepting an HTTP connection: {error}");
                // Probably out of file descriptors: a short pause may help.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let routes = Arc::clone(&routes);
        let task = tokio::spawn(async move {
            let service = service_fn(|request: hyper::Request<Incoming>| {
                let head = request.into_parts().0;
                let routes = Arc::clone(&routes);
                async move {
                    let response = routes.answer(Request { head, peer }).await;
                    Ok::<_, Infallible>(hyper::Response::from(response))
                }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER)
                .max_buf_size(REQUEST_BYTES)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(PATIENCE, connection).await {
                log::debug!("answering a request of {peer}: {error}");
            }
        });
        connections.admit(peer.ip().to_canonical(), task.abort_handle());
        // Lets evicted connections close, and pending requests be answered.
        yield_now().await;
    }
}

impl From<Response> for hyper::Response<Full<Bytes>> {
    fn from(response: Response) -> Self {
        let mut answer = Self::new(Full::new(response.body));
        *answer.status_mut() = response.status;
        answer.headers_mut().extend(response.headers);
        answer
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
