//! Endless list and watch of one set of objects.
//!
//! Not kube-runtime's watcher: that trusts every list, and retries without a pause if a server
//! closes each watch as soon as it is opened.

use super::limit::{PAGE, TooLong};
use futures::{TryStreamExt as _, pin_mut};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Time limit until a response begins.
const ANSWER: Duration = Duration::from_secs(15);

/// Lifetime of a watch, in seconds. The server ends it; a few seconds later it counts as dead.
const WATCH_FOR: u32 = 240;

/// Lifetime after which a watch is renewed without a pause.
const GOOD_LIFE: Duration = Duration::from_secs(5);

/// First and longest pause between failing attempts; doubled each time.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Store of the followed objects.
pub(super) trait Set<K> {
    /// Content of a list until it is complete.
    type Listed: Default;
    /// Returns the field selector of the objects.
    fn fields(&self) -> Option<String>;
    /// Returns the label selector of the objects.
    fn labels(&self) -> Option<String>;
    /// Adds a page of a list.
    fn gather(&self, page: Vec<K>, listed: &mut Self::Listed) -> Result<(), Trouble>;
    /// Replaces all objects by a complete list.
    async fn replace(&mut self, all: Self::Listed) -> Result<(), Trouble>;
    /// Handles an object that a watch reports as added or changed.
    fn apply(&mut self, object: K) -> Result<(), Trouble>;
    /// Handles an object that a watch reports as deleted.
    fn remove(&mut self, object: &K);
    /// Records the current error, or that there is none.
    fn state(&mut self, trouble: Option<&Trouble>);
}

/// Kind of an API error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Unavailable: no response, or a server error.
    Away,
    /// Refused: not authenticated, or forbidden.
    Refused,
    /// Unexpected: a response that does not match the request or is implausible.
    Odd,
}

/// Reason why the API cannot be queried right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Description for the log.
    pub text: String,
    /// Kind of the error.
    pub kind: Kind,
    /// Set if the known state cannot be continued from: a new list is needed.
    relist: bool,
}

impl Trouble {
    /// Makes an error that requires a new list.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self::of_kind(Kind::Odd, text)
    }

    /// Makes an error of the given kind.
    pub(crate) fn of_kind(kind: Kind, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            kind,
            relist: true,
        }
    }

    /// Makes the error of a response that did not arrive in time.
    pub(crate) fn silent() -> Self {
        Self {
            text: "timed out waiting for the API server".into(),
            kind: Kind::Away,
            relist: false,
        }
    }

    /// Adds the failed operation to the text.
    pub(crate) fn while_doing(mut self, what: &str) -> Self {
        self.text = format!("{what}: {}", self.text);
        self
    }

    fn of_status(status: &Status) -> Self {
        let kind = match status.code {
            401 | 403 => Kind::Refused,
            429 | 500.. => Kind::Away,
            _ => Kind::Odd,
        };
        let text = format!(
            "the API answers {} {}: {}",
            status.code, status.reason, status.message
        );
        Self::of_kind(kind, text)
    }

    pub(crate) fn of(error: &kube::Error) -> Self {
        if let Some(error) = TooLong::behind(error) {
            return Self::new(error.to_string());
        }
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            // The next watch continues where the connection broke.
            kube::Error::ReadEvents(_) | kube::Error::HyperError(_) | kube::Error::Service(_) => {
                Self {
                    text: causes(error),
                    kind: Kind::Away,
                    relist: false,
                }
            }
            _ => Self::new(causes(error)),
        }
    }
}

/// Formats an error as one line.
pub(crate) fn describe(error: &kube::Error) -> String {
    Trouble::of(error).text
}

/// Formats an error with its causes, which its own text may repeat.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// List and watch of one store.
pub(super) struct Follow<K, S> {
    api: Api<K>,
    set: S,
    /// Resource version up to which the store is known; `None` before a list.
    version: Option<String>,
}

impl<K, S> Follow<K, S>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    S: Set<K>,
{
    pub(super) fn new(api: Api<K>, set: S) -> Self {
        Self {
            api,
            set,
            version: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut pause = PAUSES.0;
        loop {
            let start = Instant::now();
            let outcome = self.round().await;
            if let Err(trouble) = &outcome {
                if trouble.relist {
                    self.version = None;
                }
                self.set.state(Some(trouble));
            }
            if start.elapsed() >= GOOD_LIFE {
                pause = PAUSES.0;
                if outcome.is_ok() {
                    continue;
                }
            }
            sleep(pause.mul_f64(0.5 + 0.5 * random())).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Lists if necessary, then watches until the server ends the watch.
    async fn round(&mut self) -> Result<(), Trouble> {
        if self.version.is_none() {
            self.version = Some(self.list().await?);
        }
        let version = self.version.clone().unwrap_or_default();
        let params = WatchParams {
            field_selector: self.set.fields(),
            label_selector: self.set.labels(),
            timeout: Some(WATCH_FOR),
            bookmarks: true,
            ..WatchParams::default()
        };
        let opened = timeout(ANSWER, self.api.watch(&params, &version)).await;
        let events = opened
            .map_err(|_| Trouble::silent())?
            .map_err(|error| Trouble::of(&error))?;
        pin_mut!(events);
        self.set.state(None);
        let deadline = Instant::now() + Duration::from_secs(u64::from(WATCH_FOR)) + ANSWER;
        loop {
            match tokio::time::timeout_at(deadline, events.try_next()).await {
                Err(_) => return Err(Trouble::silent()),
                Ok(Err(error)) => return Err(Trouble::of(&error)),
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(event))) => self.event(event)?,
            }
        }
    }

    fn event(&mut self, event: WatchEvent<K>) -> Result<(), Trouble> {
        let version = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = object.resource_version();
                self.set.apply(object)?;
                version
            }
            WatchEvent::Deleted(object) => {
                self.set.remove(&object);
                object.resource_version()
            }
            WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version),
            WatchEvent::Error(status) => return Err(Trouble::of_status(&status)),
        };
        // Without a resource version the watch cannot be continued.
        let known = version.filter(|version| !version.is_empty());
        self.version =
            Some(known.ok_or_else(|| Trouble::new("the API sends objects without a version"))?);
        Ok(())
    }

    /// Lists page by page, so that each response is short.
    async fn list(&mut self) -> Result<String, Trouble> {
        let mut params = ListParams {
            field_selector: self.set.fields(),
            label_selector: self.set.labels(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        let mut all = S::Listed::default();
        let version = loop {
            let page = timeout(ANSWER, self.api.list(&params)).await;
            let page = page
                .map_err(|_| Trouble::silent())?
                .map_err(|error| Trouble::of(&error))?;
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if page.items.is_empty() && params.continue_token.is_some() {
                return Err(Trouble::new(
                    "the API lists pages with nothing on them: check for a proxy between the node \
                     and the API server",
                ));
            }
            self.set.gather(page.items, &mut all)?;
            if params.continue_token.is_none() {
                break page.metadata.resource_version;
            }
        };
        let version = version.filter(|version| !version.is_empty());
        let version = version.ok_or_else(|| Trouble::new("the API lists without a version"))?;
        self.set.replace(all).await?;
        Ok(version)
    }
}

/// Returns a number from 0 to 1 that spreads the requests of a cluster's nodes. Every `RandomState`
/// has its own keys.
pub(crate) fn random() -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "any fraction will do")]
    let fraction = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    fraction
}
