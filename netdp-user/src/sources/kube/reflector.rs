//! Endless list and watch of one set of objects.
//!
//! Not kube-runtime's watcher: that trusts every list, and retries without a pause if a server
//! closes each watch as soon as it is opened.

use super::api_error::ApiError;
use super::limit::{PAGE_SIZE, TooLong};
use futures::{TryStreamExt as _, pin_mut};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Time limit until a response begins.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// Lifetime of a watch, in seconds. The server ends it; a few seconds later it counts as dead.
const WATCH_FOR: u32 = 240;

/// Lifetime after which a watch is renewed without a pause.
const MIN_WATCH_LIFE: Duration = Duration::from_secs(5);

/// First and longest pause between failing attempts; doubled each time.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Store of the followed objects.
pub(super) trait ObjectStore<K> {
    /// Content of a list until it is complete.
    type Listed: Default;
    /// Returns the field selector of the objects.
    fn fields(&self) -> Option<String>;
    /// Returns the label selector of the objects.
    fn labels(&self) -> Option<String>;
    /// Returns the number of objects per page of a list.
    fn page_size(&self) -> u32 {
        PAGE_SIZE
    }
    /// Adds a page of a list.
    fn add_page(&self, page: Vec<K>, listed: &mut Self::Listed) -> Result<(), ApiError>;
    /// Replaces all objects by a complete list.
    async fn replace(&mut self, all: Self::Listed) -> Result<(), ApiError>;
    /// Handles an object that a watch reports as added or changed.
    fn apply(&mut self, object: K) -> Result<(), ApiError>;
    /// Handles an object that a watch reports as deleted.
    fn remove(&mut self, object: &K);
    /// Records the current error, or that there is none.
    fn set_error(&mut self, error: Option<&ApiError>);
}

/// List and watch of one store.
pub(super) struct Reflector<K, S> {
    api: Api<K>,
    store: S,
    /// Resource version up to which the store is known; `None` before a list.
    version: Option<String>,
}

impl<K, S> Reflector<K, S>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    S: ObjectStore<K>,
{
    pub(super) fn new(api: Api<K>, store: S) -> Self {
        Self {
            api,
            store,
            version: None,
        }
    }

    pub(super) async fn run(mut self) {
        let mut pause = BACKOFF.0;
        loop {
            let start = Instant::now();
            let outcome = self.list_and_watch().await;
            if let Err(error) = &outcome {
                if error.relist {
                    self.version = None;
                }
                self.store.set_error(Some(error));
            }
            if start.elapsed() >= MIN_WATCH_LIFE {
                pause = BACKOFF.0;
                if outcome.is_ok() {
                    continue;
                }
            }
            sleep(pause.mul_f64(0.5 + 0.5 * random())).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// Lists if necessary, then watches until the server ends the watch.
    async fn list_and_watch(&mut self) -> Result<(), ApiError> {
        if self.version.is_none() {
            self.version = Some(self.list().await?);
        }
        let version = self.version.clone().unwrap_or_default();
        let params = WatchParams {
            field_selector: self.store.fields(),
            label_selector: self.store.labels(),
            timeout: Some(WATCH_FOR),
            bookmarks: true,
            ..WatchParams::default()
        };
        let opened = timeout(RESPONSE_TIMEOUT, self.api.watch(&params, &version)).await;
        let events = opened
            .map_err(|_| ApiError::timed_out())?
            .map_err(|error| ApiError::of(&error))?;
        pin_mut!(events);
        self.store.set_error(None);
        let deadline =
            Instant::now() + Duration::from_secs(u64::from(WATCH_FOR)) + RESPONSE_TIMEOUT;
        loop {
            match tokio::time::timeout_at(deadline, events.try_next()).await {
                Err(_) => return Err(ApiError::timed_out()),
                Ok(Err(error)) => return Err(ApiError::of(&error)),
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(event))) => self.handle_event(event)?,
            }
        }
    }

    fn handle_event(&mut self, event: WatchEvent<K>) -> Result<(), ApiError> {
        let version = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = object.resource_version();
                self.store.apply(object)?;
                version
            }
            WatchEvent::Deleted(object) => {
                self.store.remove(&object);
                object.resource_version()
            }
            WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version),
            WatchEvent::Error(status) => return Err(ApiError::of_status(&status)),
        };
        // Without a resource version the watch cannot be continued.
        let known = version.filter(|version| !version.is_empty());
        self.version = Some(known.ok_or_else(|| {
            ApiError::new("the API returned an object without a resourceVersion")
        })?);
        Ok(())
    }

    /// Lists page by page, so that each response is short.
    async fn list(&mut self) -> Result<String, ApiError> {
        let mut params = ListParams {
            field_selector: self.store.fields(),
            label_selector: self.store.labels(),
            limit: Some(self.store.page_size()),
            ..ListParams::default()
        };
        let mut all = S::Listed::default();
        let version = loop {
            let page = timeout(RESPONSE_TIMEOUT, self.api.list(&params)).await;
            let page = match page.map_err(|_| ApiError::timed_out())? {
                Ok(page) => page,
                Err(error) => match shorter(params.limit, &error) {
                    Some(limit) => {
                        params.limit = Some(limit);
                        continue;
                    }
                    None => return Err(ApiError::of(&error)),
                },
            };
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if page.items.is_empty() && params.continue_token.is_some() {
                return Err(ApiError::new(
                    "the API returned an empty page of a list: check for a proxy between the node \
                     and the API server",
                ));
            }
            self.store.add_page(page.items, &mut all)?;
            if params.continue_token.is_none() {
                break page.metadata.resource_version;
            }
        };
        let version = version.filter(|version| !version.is_empty());
        let version = version
            .ok_or_else(|| ApiError::new("the API returned a list without a resourceVersion"))?;
        self.store.replace(all).await?;
        Ok(version)
    }
}

/// Returns the number of objects to ask for after a page of `limit` was too long, if fewer are left
/// to try.
fn shorter(limit: Option<u32>, error: &kube::Error) -> Option<u32> {
    TooLong::behind(error)?;
    limit
        .filter(|limit| *limit > PAGE_SIZE)
        .map(|limit| (limit / 2).max(PAGE_SIZE))
}

/// Returns a number from 0 to 1 that spreads the requests of a cluster's nodes. Every `RandomState`
/// has its own keys.
pub(crate) fn random() -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "any fraction will do")]
    let fraction = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_objects_are_asked_for_after_a_page_that_was_too_long() {
        let too_long = kube::Error::Service(Box::new(TooLong { limit: 9 }));
        let limits = std::iter::successors(Some(50), |limit| shorter(Some(*limit), &too_long));
        assert_eq!(limits.collect::<Vec<_>>(), [50, 25, 12, 6, 3, PAGE_SIZE]);
        let other = kube::Error::Service("cut".into());
        assert_eq!(shorter(Some(50), &other), None);
    }
}
