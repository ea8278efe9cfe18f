//! A fault-injecting proxy between the agent and the API server.

use anyhow::{Context as _, Result};
use futures::future::{Either, select};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kube::Client;
use std::net::TcpListener;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use testbed::Netns;
use tokio::sync::watch;

/// Treatment of the agent's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Forwarded to the API server.
    None,
    /// Forwarded with a delay.
    Slow,
    /// All connections are closed, new ones included.
    Cut,
    /// Requests are never answered.
    Silent,
    /// This HTTP status, in the API server's format.
    Status(u16),
    /// 200, with a body that is not a Kubernetes object.
    Garbage,
    /// Watches return "resource version too old" (410).
    Gone,
    /// Watches end immediately.
    ShortWatches,
    /// Lists are empty and resource versions unknown: an API server on another etcd.
    EmptyLists,
    /// Lists of ServiceCIDRs have one, in this version only, with the network [`SERVICES`]: the API
    /// server of the tests has no such objects.
    ServiceCidrs(&'static str),
}

/// Network of the ServiceCIDR of [`Fault::ServiceCidrs`], in which the neighbour is.
pub const SERVICES: &str = "10.1.0.16/28";

type Body = UnsyncBoxBody<Bytes, kube::Error>;

/// Accepts plain HTTP from the agent; connects to the API server with TLS and the ServiceAccount's
/// token.
pub struct Proxy {
    port: u16,
    fault: watch::Sender<Fault>,
    requests: Arc<AtomicUsize>,
}

impl Proxy {
    /// Starts the proxy in a namespace; `kubeconfig` is for the API server.
    pub fn start(ns: &Netns, kubeconfig: &Path) -> Result<Self> {
        let listener = ns.enter(|| TcpListener::bind("127.0.0.1:0"))??;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let (fault, faults) = watch::channel(Fault::None);
        let requests = Arc::default();
        let serve = serve(
            listener,
            kubeconfig.to_owned(),
            faults,
            Arc::clone(&requests),
        );
        let ns = ns.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        // The runtime's sockets belong to the namespace of its thread.
        std::thread::spawn(move || ns.enter(|| runtime.block_on(serve)));
        Ok(Self {
            port,
            fault,
            requests,
        })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Sets the fault; existing connections are closed.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Returns the number of requests so far; with [`Fault::Cut`], of connections.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

/// Serves until the [`Proxy`] is dropped.
async fn serve(
    listener: TcpListener,
    kubeconfig: std::path::PathBuf,
    mut faults: watch::Receiver<Fault>,
    requests: Arc<AtomicUsize>,
) -> Result<()> {
    let client = netdp_user::sources::kube::connect(Some(&kubeconfig)).await?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            changed = faults.changed() => {
                changed.context("the test is over")?;
                continue;
            }
        };
        let (stream, _) = accepted?;
        let fault = *faults.borrow_and_update();
        if fault == Fault::Cut {
            requests.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let (client, requests) = (client.clone(), Arc::clone(&requests));
        let mut changes = faults.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                requests.fetch_add(1, Ordering::Relaxed);
                answer(client.clone(), fault, request)
            });
            let connection =
                pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            let changed = pin!(changes.changed());
            if let Either::Left((Err(error), _)) = select(connection, changed).await {
                eprintln!("proxy: {error}");
            }
        });
    }
}

async fn answer(
    client: Client,
    fault: Fault,
    request: Request<Incoming>,
) -> Result<Response<Body>, kube::Error> {
    let query = request.uri().query().unwrap_or_default();
    let watches = query.contains("watch=true");
    let lists = request.method() == "GET" && !watches;
    match fault {
        Fault::Cut | Fault::Silent => return std::future::pending().await,
        Fault::Slow => tokio::time::sleep(Duration::from_millis(700)).await,
        Fault::Status(code) => return Ok(reply(code, &status(code))),
        Fault::Garbage => return Ok(reply(200, "<html>\u{0}{\"kind\": \"Rubbish\"}\n")),
        Fault::Gone | Fault::EmptyLists if watches => {
            let event = format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", status(410));
            return Ok(reply(200, &event));
        }
        Fault::ShortWatches if watches => return Ok(reply(200, "")),
        Fault::EmptyLists if lists => {
            let list = "{\"kind\":\"List\",\"apiVersion\":\"v1\",\"metadata\":\
                        {\"resourceVersion\":\"1\"},\"items\":[]}";
            return Ok(reply(200, list));
        }
        Fault::ServiceCidrs(version) if lists => {
            let path = format!("/apis/networking.k8s.io/{version}/servicecidrs");
            if request.uri().path() == path {
                let list = format!(
                    "{{\"kind\":\"ServiceCIDRList\",\"apiVersion\":\"networking.k8s.io/{version}\",\
                     \"metadata\":{{\"resourceVersion\":\"1\"}},\"items\":[{{\"metadata\":\
                     {{\"name\":\"kubernetes\"}},\"spec\":{{\"cidrs\":[\"{SERVICES}\"]}}}}]}}"
                );
                return Ok(reply(200, &list));
            }
        }
        _ => {}
    }
    let (mut parts, body) = request.into_parts();
    parts.headers.remove("authorization");
    parts.headers.remove("host");
    let bytes = body.collect().await.map_err(kube::Error::HyperError)?;
    let request = Request::from_parts(parts, kube::client::Body::from(bytes.to_bytes().to_vec()));
    let response = client.send(request).await?;
    Ok(response.map(BodyExt::boxed_unsync))
}

fn status(code: u16) -> String {
    let reason = match code {
        403 => "Forbidden",
        410 => "Expired",
        _ => "InternalError",
    };
    format!(
        "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"status\":\"Failure\",\"message\":\"as the \
         test wants it\",\"reason\":\"{reason}\",\"code\":{code}}}"
    )
}

fn reply(code: u16, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(text.to_owned()));
    let body = body.map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    if let Ok(code) = hyper::StatusCode::from_u16(code) {
        *response.status_mut() = code;
    }
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert("content-type", json);
    response
}
