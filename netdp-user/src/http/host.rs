//! The check of the `Host` header. A site whose name resolves to this machine's address (DNS rebinding) has
//! the reader's browser send that name; an address, or `localhost`, is nobody else's.

use super::{Request, Response};
use crate::machine;
use hyper::StatusCode;
use hyper::header::HOST;
use hyper::http::uri::Authority;
use std::net::IpAddr;

/// Hosts that a request may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hosts {
    /// `localhost` and loopback addresses.
    Loopback,
    /// These, all other addresses, and the machine's name.
    Addresses,
}

/// Returns the answer to a request that was not meant for this machine; `None` if it was.
pub(crate) fn misdirected(request: &Request, hosts: Hosts) -> Option<Response> {
    let text = "the Host header names neither this machine nor an address: a page of another site may have \
                sent the request\n";
    let is_meant = names_only(request, hosts);
    (!is_meant).then(|| Response::text(StatusCode::MISDIRECTED_REQUEST, text))
}

/// Reports whether a request names a host, and none but these.
fn names_only(request: &Request, hosts: Hosts) -> bool {
    let head = &request.head;
    let headers = head.headers.get_all(HOST).iter();
    let headers = headers.map(|host| Authority::try_from(host.as_bytes()).ok());
    let given = head.uri.authority().cloned().map(Some);
    let mut named = headers.chain(given).peekable();
    named.peek().is_some() && named.all(|host| host.is_some_and(|host| hosts.contain(host.host())))
}

impl Hosts {
    fn contain(self, host: &str) -> bool {
        if host.eq_ignore_ascii_case("localhost") {
            return true;
        }
        let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        match bare.unwrap_or(host).parse::<IpAddr>() {
            Ok(address) => self == Self::Addresses || address.is_loopback(),
            Err(_) => self == Self::Addresses && host.eq_ignore_ascii_case(&machine::name()),
        }
    }
}
