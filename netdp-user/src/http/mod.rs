//! The HTTP server: answers GET and HEAD requests, each by the route of its path.
//!
//! It shares the control-plane thread with the Kubernetes API, so a route answers at once, or runs
//! on the blocking pool ([`Routes::slow`]).

mod host;
mod server;

use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

pub(crate) use host::{Hosts, misdirected};
pub(crate) use server::{listen, serve};

/// A request without its body, which is not read.
#[derive(Debug)]
pub(crate) struct Request {
    /// Method, path and query, and headers.
    pub head: Parts,
    /// The client's address and port.
    pub peer: SocketAddr,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Response {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
}

impl Response {
    /// Returns an answer with a body of a content type.
    pub(crate) fn new(
        status: StatusCode,
        content_type: &'static str,
        body: impl Into<Bytes>,
    ) -> Self {
        Self {
            status,
            headers: vec![(CONTENT_TYPE, HeaderValue::from_static(content_type))],
            body: body.into(),
        }
    }

    /// Returns an answer in plain text.
    pub(crate) fn text(status: StatusCode, text: impl Into<Bytes>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", text)
    }

    /// Returns the status.
    #[cfg(test)]
    pub(crate) const fn status(&self) -> StatusCode {
        self.status
    }

    /// Adds a header.
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// The longest pause after a piece of work.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Returns how long a queue pauses after work that took so long: work takes a quarter of a core at most,
/// whoever asks however often, unless one piece takes longer than a third of [`LONGEST_PAUSE`].
fn pause(worked: Duration) -> Duration {
    worked.saturating_mul(3).min(LONGEST_PAUSE)
}

/// A queue of work that may take long: one piece at a time, and a [`pause`] after each.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    turn: Arc<Semaphore>,
    /// Time limit for the wait and the work together.
    limit: Duration,
}

impl Queue {
    /// Returns a queue with a time limit for the wait and the work together; below
    /// [`server::PATIENCE`].
    pub(crate) fn new(limit: Duration) -> Self {
        let turn = Arc::new(Semaphore::new(1));
        Self { turn, limit }
    }

    /// Runs work on the blocking pool in its turn. The work is never interrupted: where the answer
    /// comes too late, the next in the queue still waits for its end.
    async fn run(self, work: impl FnOnce() -> Response + Send + 'static) -> Response {
        let answer = timeout(self.limit, async {
            let turn = self.turn.acquire_owned().await.ok()?;
            let (answer, answered) = oneshot::channel();
            let worker = spawn_blocking(move || {
                let begun = Instant::now();
                // Nobody waits any more where the time limit has passed.
                let _ = answer.send(work());
                (turn, pause(begun.elapsed()))
            });
            tokio::spawn(async move {
                if let Ok((_turn, pause)) = worker.await {
                    sleep(pause).await;
                }
            });
            answered.await.ok()
        });
        match answer.await {
            Ok(Some(response)) => response,
            Ok(None) => Response::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the agent failed to answer: its log has the reason\n",
            ),
            Err(_) => Response::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy with other requests: try again\n",
            )
            .with_header(RETRY_AFTER, HeaderValue::from_static("1")),
        }
    }
}

type Answer = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

/// Returns the answer to a request that a path does not serve; `None` if it does.
type Refusal = Arc<dyn Fn(&Request) -> Option<Response> + Send + Sync>;

/// The answer to requests of one path.
struct Route {
    /// Asked first, on the thread of the server; `None` if the path serves everybody.
    refusal: Option<Refusal>,
    answer: Answer,
    /// The queue in which it waits; `None` if it answers at once.
    queue: Option<Queue>,
}

/// The paths that a listener serves.
#[derive(Default)]
pub(crate) struct Routes(BTreeMap<&'static str, Route>);

impl Routes {
    /// Adds a path that is answered at once, on the thread of the server.
    pub(crate) fn quick(
        self,
        path: &'static str,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        self.with(path, None, answer)
    }

    /// Adds a path whose answer may take long.
    pub(crate) fn slow(
        self,
        path: &'static str,
        queue: &Queue,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        self.with(path, Some(queue.clone()), answer)
    }

    fn with(
        mut self,
        path: &'static str,
        queue: Option<Queue>,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        let route = Route {
            refusal: None,
            answer: Arc::new(answer),
            queue,
        };
        self.0.insert(path, route);
        self
    }

    /// Adds a path whose answer may take long, and that refuses some requests before they wait.
    pub(crate) fn guarded(
        self,
        path: &'static str,
        queue: &Queue,
        refusal: impl Fn(&Request) -> Option<Response> + Send + Sync + 'static,
        answer: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        let mut routes = self.slow(path, queue, answer);
        if let Some(route) = routes.0.get_mut(path) {
            route.refusal = Some(Arc::new(refusal));
        }
        routes
    }

    async fn answer(&self, request: Request) -> Response {
        let (method, uri) = (&request.head.method, &request.head.uri);
        log::debug!("{method} {uri} of {}", request.peer);
        if !matches!(request.head.method, Method::GET | Method::HEAD) {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            return Response::text(status, "method not allowed: use GET or HEAD\n")
                .with_header(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        let Some(route) = self.0.get(request.head.uri.path()) else {
            let paths: Vec<_> = self.0.keys().copied().collect();
            let text = format!("not found: use {}\n", paths.join(", "));
            return Response::text(StatusCode::NOT_FOUND, text);
        };
        if let Some(refused) = route.refusal.as_ref().and_then(|refusal| refusal(&request)) {
            return refused;
        }
        let answer = Arc::clone(&route.answer);
        match &route.queue {
            None => answer(&request),
            Some(queue) => queue.clone().run(move || answer(&request)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Queue, Request, Response, Routes, pause};
    use hyper::StatusCode;
    use std::sync::mpsc::channel;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    fn request(method: &str, uri: &str) -> Request {
        let request = hyper::Request::builder().method(method).uri(uri);
        Request {
            head: request.body(()).unwrap().into_parts().0,
            peer: "127.0.0.1:40000".parse().unwrap(),
        }
    }

    fn ok(text: &str) -> Response {
        Response::text(StatusCode::OK, text.to_owned())
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(future)
    }

    #[test]
    fn a_path_is_answered_by_its_route_whatever_the_query() {
        let routes = Routes::default()
            .quick("/a", |request| ok(request.head.uri.query().unwrap_or("-")))
            .slow("/b", &Queue::new(Duration::from_secs(60)), |request| {
                ok(request.head.method.as_str())
            });
        let ask = |method, uri| {
            let response = block_on(routes.answer(request(method, uri)));
            let body = String::from_utf8(response.body.to_vec()).unwrap();
            (response.status.as_u16(), body)
        };
        assert_eq!(ask("GET", "/a?x=1"), (200, "x=1".into()));
        assert_eq!(ask("HEAD", "/b"), (200, "HEAD".into()));
        assert_eq!(ask("GET", "/c"), (404, "not found: use /a, /b\n".into()));
        assert_eq!(ask("POST", "/a").0, 405);
    }

    #[test]
    fn work_is_a_quarter_of_the_time_at_most() {
        let milliseconds = Duration::from_millis;
        assert_eq!(pause(milliseconds(20)), milliseconds(60));
        assert_eq!(pause(milliseconds(2_000)), milliseconds(1_000));
        assert_eq!(pause(Duration::MAX), milliseconds(1_000));
    }

    #[test]
    fn slow_work_is_done_one_at_a_time_and_others_are_told_to_come_again() {
        let (end, until) = channel::<()>();
        let until = Mutex::new(until);
        let routes = Arc::new(
            Routes::default()
                .slow("/slow", &Queue::new(Duration::from_millis(20)), move |_| {
                    let _ = until.lock().unwrap().recv();
                    ok("done")
                })
                .quick("/quick", |_| ok("at once")),
        );
        let statuses = block_on(async {
            let ask = |path| {
                let routes = Arc::clone(&routes);
                tokio::spawn(async move { routes.answer(request("GET", path)).await.status })
            };
            let (first, second) = (ask("/slow"), ask("/slow"));
            let quick = ask("/quick").await.unwrap();
            let late = (first.await.unwrap(), second.await.unwrap());
            drop(end);
            while ask("/slow").await.unwrap() != StatusCode::OK {}
            [quick, late.0, late.1]
        });
        assert_eq!(statuses.map(|it| it.as_u16()), [200, 503, 503]);
    }
}
