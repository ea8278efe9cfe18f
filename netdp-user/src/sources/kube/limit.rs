//! Size limits of API responses: a hostile or faulty server cannot exhaust the agent's memory.

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::{Request, Response};
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower::{BoxError, Layer, Service};

/// Size limit of a response for the agent, in bytes: a page of a list, or one event of a watch.
/// Objects are at most 1.5 MiB in the API server's store.
pub(super) const MAX_RESPONSE_BYTES: usize = 4 << 20;

/// Size limit of a response for a user, in bytes: a page of a list of nodes.
pub(super) const MAX_USER_RESPONSE_BYTES: usize = 64 << 20;

/// Number of objects per page of a list: few enough for [`MAX_RESPONSE_BYTES`].
pub(super) const PAGE_SIZE: u32 = 2;

/// Limit of ConfigMaps per selection.
pub(super) const MAX_CONFIG_MAPS: usize = 64;

/// Limit of the total size of one selection's documents, in bytes.
pub(super) const MAX_CONFIG_MAP_BYTES: usize = 4 << 20;

/// Error of a response that exceeds the limit.
#[derive(Debug)]
pub(super) struct TooLong {
    pub(super) limit: usize,
}

impl TooLong {
    /// Returns this error if it is `error` or one of its causes.
    pub(super) fn behind<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(cause) = next {
            if let Some(found) = cause.downcast_ref() {
                return Some(found);
            }
            next = cause.source();
        }
        None
    }
}

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the API sends more than {} MiB at once, and reading stopped; check for an object of \
             that size, or a proxy between the node and the API server",
            self.limit >> 20
        )
    }
}

impl Error for TooLong {}

/// Tower layer that limits the bodies of all responses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Limit in bytes; for a watch, per line.
    pub(super) bytes: usize,
}

impl<S> Layer<S> for Limits {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited {
            inner,
            limits: *self,
        }
    }
}

/// A service whose responses are limited.
#[derive(Debug)]
pub(super) struct Limited<S> {
    inner: S,
    limits: Limits,
}

impl<S, A, B> Service<Request<A>> for Limited<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<LimitedBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        let by_line = query.split('&').any(|part| part == "watch=true");
        let limit = self.limits.bytes;
        let answer = self.inner.call(request);
        Box::pin(async move {
            Ok(answer.await?.map(|inner| LimitedBody {
                inner,
                by_line,
                limit,
                seen: 0,
            }))
        })
    }
}

/// A body that fails once it exceeds the limit.
#[derive(Debug)]
pub(super) struct LimitedBody<B> {
    inner: B,
    /// Set if each line is limited separately.
    by_line: bool,
    limit: usize,
    /// Bytes received, or received since the end of the last line.
    seen: usize,
}

impl<B> LimitedBody<B> {
    fn count(&mut self, data: &[u8]) -> Result<(), TooLong> {
        let limit = self.limit;
        let add = |bytes: usize, seen: usize| match seen.saturating_add(bytes) {
            seen if seen > limit => Err(TooLong { limit }),
            seen => Ok(seen),
        };
        if self.by_line {
            let mut lines = data.split(|byte| *byte == b'\n').peekable();
            while let Some(line) = lines.next() {
                let seen = add(line.len(), self.seen)?;
                self.seen = if lines.peek().is_some() { 0 } else { seen };
            }
        } else {
            self.seen = add(data.len(), self.seen)?;
        }
        Ok(())
    }
}

impl<B> Body for LimitedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let counted = frame.data_ref().map_or(Ok(()), |data| self.count(data));
                Some(counted.map(|()| frame).map_err(Into::into))
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(by_line: bool) -> LimitedBody<()> {
        LimitedBody {
            inner: (),
            by_line,
            limit: 10,
            seen: 0,
        }
    }

    #[test]
    fn an_answer_is_counted_as_a_whole() {
        let mut body = body(false);
        body.count(b"12345\n").unwrap();
        body.count(b"6789").unwrap();
        let error = body.count(b"x").unwrap_err();
        assert!(error.to_string().contains("more than"), "{error}");
    }

    #[test]
    fn of_a_watch_each_line_is_counted_for_itself() {
        let mut body = body(true);
        for _ in 0..100 {
            body.count(b"123456789\n").unwrap();
            body.count(b"12345").unwrap();
            body.count(b"67890\n1\n").unwrap();
        }
        body.count(b"1234567890").unwrap();
        body.count(b"1").unwrap_err();
    }

    #[test]
    fn it_is_found_behind_other_errors() {
        let error = kube::Error::Service(Box::new(TooLong { limit: 10 }));
        assert!(TooLong::behind(&error).is_some());
        let error = kube::Error::ReadEvents(std::io::Error::other(error));
        assert!(TooLong::behind(&error).is_some());
        let other = kube::Error::LinesCodecMaxLineLengthExceeded;
        assert!(TooLong::behind(&other).is_none());
    }
}
