//! The page: what netdp does on this node, for a browser, and the output of the commands under
//! `/api/v1`.
//!
//! [`past`] keeps the last hour, [`look`] reads maps and files when somebody asks, [`html`] makes markup of
//! both, [`api`] answers programs. Nothing here changes anything. [`access`] says who may read.

mod access;
mod api;
mod html;
mod look;
mod past;
mod query;
mod spark;

#[cfg(test)]
mod tests;

use crate::control::AgentStatus;
use crate::datapath::{self, is_pinned};
use crate::events::Recent;
use crate::http::{Queue, Request, Response, Routes};
use crate::machine;
use crate::monitor::{Line, Sources, recent};
use crate::pods::Names;
use crate::policy::history::History;
use crate::state_dir::StateDir;
use crate::time;
use html::{Asked, Content};
use hyper::StatusCode;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY, REFRESH,
    X_CONTENT_TYPE_OPTIONS,
};
use look::Looks;
use past::{Past, Sample};
use query::Query;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

pub use access::HttpPage;

/// Time limit of an answer: below that of a connection.
const LIMIT: Duration = Duration::from_secs(4);

/// Directories that the page reads.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Directory of the pinned maps.
    pub bpffs: PathBuf,
    /// State directory of the agent.
    pub state_dir: PathBuf,
    /// libcni's cache of results.
    pub cni_dir: PathBuf,
    /// The newest events.
    pub recent: Recent,
}

impl Place {
    fn names(&self) -> Names {
        Names::load(&self.cni_dir, &StateDir::at(&self.state_dir))
    }

    /// Returns the newest events, the newest first.
    fn events(&self) -> Vec<Line> {
        let sources = Sources {
            bpffs: &self.bpffs,
            state_dir: &self.state_dir,
            cni_dir: &self.cni_dir,
        };
        recent(&self.recent, &sources)
    }
}

/// All that the page is made of.
pub(crate) struct Page {
    place: Place,
    readers: HttpPage,
    status: watch::Receiver<AgentStatus>,
    past: Mutex<Past>,
    looks: Mutex<Looks>,
}

impl Page {
    /// Makes the page of an agent; `None` if nobody may read it.
    pub(crate) fn new(
        place: Place,
        readers: HttpPage,
        status: watch::Receiver<AgentStatus>,
    ) -> Option<Arc<Self>> {
        let page = Self {
            place,
            readers,
            status,
            past: Mutex::default(),
            looks: Mutex::default(),
        };
        (readers != HttpPage::Off).then(|| Arc::new(page))
    }

    /// Adds the paths of the page and of the API.
    pub(crate) fn routes(self: &Arc<Self>, routes: Routes) -> Routes {
        let queue = Queue::new(LIMIT);
        let readers = self.readers;
        let refusal = move |request: &Request| readers.refusal(request);
        let (page, form) = (Arc::clone(self), Arc::clone(self));
        let routes = routes
            .guarded("/", &queue, refusal, move |it| page.overview(it))
            .guarded("/explain", &queue, refusal, move |it| form.explain(it));
        api::PATHS.iter().fold(routes, |routes, path| {
            let page = Arc::clone(self);
            let answer = move |request: &Request| path.answer(&page.place, request);
            routes.guarded(path.path, &queue, refusal, answer)
        })
    }

    /// Takes samples for ever.
    pub(crate) async fn remember(self: Arc<Self>) {
        let mut due = interval(past::INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let page = Arc::clone(&self);
            // It ends only with the runtime.
            let _ = spawn_blocking(move || page.add_sample()).await;
        }
    }

    fn add_sample(&self) {
        if !is_pinned(&self.place.bpffs) {
            return;
        }
        match datapath::open(&self.place.bpffs).and_then(|maps| Sample::take(&maps)) {
            Ok(sample) => lock(&self.past).add(sample),
            Err(err) => log::debug!("sampling for the page: {err:#}"),
        }
    }

    fn overview(&self, request: &Request) -> Response {
        let every = match Query::of(request, &["every"]).and_then(|it| it.refresh()) {
            Ok(every) => every,
            Err(problem) => return self.problem(StatusCode::BAD_REQUEST, &problem),
        };
        let look = lock(&self.looks).get(&self.place);
        let history = History::read(&StateDir::at(&self.place.state_dir));
        let content = Content {
            node: machine::name(),
            now: time::now(),
            agent: self.status.borrow().clone(),
            look: &look,
            past: &lock(&self.past).clone(),
            events: self.place.events(),
            heard: self.place.recent.heard(),
            records: history.ok().flatten().map(|it| it.records),
            every,
        };
        let response = page(StatusCode::OK, html::overview(&content).into_string());
        let refresh = every.and_then(|it| HeaderValue::from_str(&it.to_string()).ok());
        match refresh {
            Some(value) => response.with_header(REFRESH, value),
            None => response,
        }
    }

    /// Answers the form of the overview.
    fn explain(&self, request: &Request) -> Response {
        let query = match Query::of(request, api::EXPLAIN) {
            Ok(query) => query,
            Err(problem) => return self.problem(StatusCode::BAD_REQUEST, &problem),
        };
        let asked = Asked {
            node: machine::name(),
            from: query.get("from").unwrap_or_default(),
            to: query.get("to").unwrap_or_default(),
            protocol: query.get("protocol").unwrap_or("tcp"),
        };
        let (status, markup) = match api::answers(&self.place, &query) {
            Ok(answers) => (StatusCode::OK, html::explained(&asked, &answers)),
            Err((status, problem)) => (status, html::unexplained(&asked, &problem)),
        };
        page(status, markup.into_string())
    }

    fn problem(&self, status: StatusCode, problem: &str) -> Response {
        page(
            status,
            html::problem(&machine::name(), problem).into_string(),
        )
    }
}

/// Returns an answer that is a page.
fn page(status: StatusCode, markup: String) -> Response {
    let response = Response::new(status, "text/html; charset=utf-8", markup);
    let policy = HeaderValue::from_str(html::security_policy());
    match policy {
        Ok(policy) => secured(response).with_header(CONTENT_SECURITY_POLICY, policy),
        Err(_) => secured(response),
    }
}

/// Adds the headers that keep other sites from using an answer.
fn secured(response: Response) -> Response {
    let same_origin = HeaderName::from_static("cross-origin-resource-policy");
    response
        .with_header(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
        .with_header(REFERRER_POLICY, HeaderValue::from_static("no-referrer"))
        .with_header(CACHE_CONTROL, HeaderValue::from_static("no-store"))
        .with_header(same_origin, HeaderValue::from_static("same-origin"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
