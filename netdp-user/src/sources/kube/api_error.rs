//! Errors of requests to the API.

use super::limit::TooLong;
use kube::core::Status;

/// Kind of an API error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ApiErrorKind {
    /// Unavailable: no response, or a server error.
    Unavailable,
    /// Refused: not authenticated, or forbidden.
    Denied,
    /// Unexpected: a response that does not match the request or is implausible.
    Unexpected,
}

/// Reason why the API cannot be queried right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    /// Description for the log.
    pub text: String,
    /// Kind of the error.
    pub kind: ApiErrorKind,
    /// Set if the known state cannot be continued from: a new list is needed.
    pub(super) relist: bool,
}

impl ApiError {
    /// Makes an error that requires a new list.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self::of_kind(ApiErrorKind::Unexpected, text)
    }

    /// Makes an error of the given kind.
    pub(crate) fn of_kind(kind: ApiErrorKind, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            kind,
            relist: true,
        }
    }

    /// Makes the error of a response that did not arrive in time.
    pub(crate) fn timed_out() -> Self {
        Self {
            text: "timed out waiting for the API server".into(),
            kind: ApiErrorKind::Unavailable,
            relist: false,
        }
    }

    /// Adds the failed operation to the text.
    pub(crate) fn in_operation(mut self, what: &str) -> Self {
        self.text = format!("{what}: {}", self.text);
        self
    }

    pub(super) fn of_status(status: &Status) -> Self {
        let kind = match status.code {
            401 | 403 => ApiErrorKind::Denied,
            429 | 500.. => ApiErrorKind::Unavailable,
            _ => ApiErrorKind::Unexpected,
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
                    kind: ApiErrorKind::Unavailable,
                    relist: false,
                }
            }
            _ => Self::new(causes(error)),
        }
    }
}

/// Formats an error as one line.
pub(crate) fn describe(error: &kube::Error) -> String {
    ApiError::of(error).text
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
