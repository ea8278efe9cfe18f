//! `/livez` and `/readyz`, for the kubelet.

use super::{Pulse, Told};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

/// A loop that has not turned for this long hangs: it turns at least with each sweep, every five
/// seconds, and the longest sweep that was measured took less than two.
const HANGS: Duration = Duration::from_secs(30);

/// Connections at a time, and how long each may take.
const CONNECTIONS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves for ever, if there is where.
pub(super) async fn serve(
    listener: Option<TcpListener>,
    pulse: Arc<Pulse>,
    told: watch::Receiver<Told>,
) {
    let listener = match listener.map(tokio::net::TcpListener::from_std) {
        None => return,
        Some(Ok(listener)) => listener,
        Some(Err(error)) => {
            log::error!("serving /livez and /readyz: {error}");
            return;
        }
    };
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::debug!("accepting a probe: {error}");
                // Out of file descriptors, most likely: a moment may help.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (pulse, told) = (Arc::clone(&pulse), told.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &pulse, &told.borrow());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(PATIENCE, connection).await {
                log::debug!("answering a probe: {error}");
            }
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, pulse: &Pulse, told: &Told) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/livez") => live(pulse.age()),
        (&Method::GET | &Method::HEAD, "/readyz") => ready(told),
        (&Method::GET | &Method::HEAD, _) => (
            StatusCode::NOT_FOUND,
            "there are /livez and /readyz\n".into(),
        ),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "GET, please\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

fn live(age: Duration) -> (StatusCode, String) {
    if age < HANGS {
        return (StatusCode::OK, "ok: the agent's loop turns\n".into());
    }
    let text = format!("the agent's loop has not turned for {} s\n", age.as_secs());
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

fn ready(told: &Told) -> (StatusCode, String) {
    if told.unready.is_empty() {
        let text = format!(
            "ok: config {} from {} in force on {}\n",
            told.hash,
            told.source,
            told.uplinks.join(", ")
        );
        return (StatusCode::OK, text);
    }
    let text = format!("not ready: {}\n", told.unready.join("\nnot ready: "));
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
