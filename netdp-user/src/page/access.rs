//! Who may read: the page shows what only root may read otherwise, so it is for this machine alone
//! unless the operator says otherwise.

use crate::http::{Hosts, Request, Response, misdirected};
use hyper::StatusCode;

/// Readers of the page and of `/api/v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HttpPage {
    /// Processes in the node's network namespace, by its loopback address.
    Loopback,
    /// Whoever reaches the address of --http-listen.
    Any,
    /// Nobody: there are no such paths.
    Off,
}

impl HttpPage {
    /// Returns the answer to a request that is not served; `None` if it is.
    pub(super) fn refusal(self, request: &Request) -> Option<Response> {
        if self == Self::Loopback && !request.peer.ip().to_canonical().is_loopback() {
            let text = "the page is served to this machine's loopback address only: use `kubectl \
                        port-forward` or `ssh -L`, or start the agent with --http-page any\n";
            return Some(Response::text(StatusCode::FORBIDDEN, text));
        }
        let hosts = match self {
            Self::Any => Hosts::Addresses,
            Self::Loopback | Self::Off => Hosts::Loopback,
        };
        misdirected(request, hosts)
    }
}

#[cfg(test)]
mod tests {
    use super::HttpPage;
    use crate::http::Request;
    use crate::machine;
    use HttpPage::{Any, Loopback};

    fn status(page: HttpPage, peer: &str, hosts: &[&str]) -> Option<u16> {
        let request = hyper::Request::builder().uri("/");
        let add =
            |request: hyper::http::request::Builder, host: &&str| request.header("Host", *host);
        let request = hosts.iter().fold(request, add).body(()).unwrap();
        let request = Request {
            head: request.into_parts().0,
            peer: format!("{peer}:40000").parse().unwrap(),
        };
        let refusal = page.refusal(&request);
        refusal.map(|response| response.status().as_u16())
    }

    #[test]
    fn only_the_loopback_address_reads_unless_any_may() {
        let host = &["127.0.0.1:10268"];
        for peer in ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "127.9.9.9"] {
            assert_eq!(status(Loopback, peer, host), None, "{peer}");
        }
        for peer in ["10.1.0.10", "[fd00::1]", "[::ffff:10.1.0.10]"] {
            assert_eq!(status(Loopback, peer, host), Some(403), "{peer}");
            assert_eq!(status(Any, peer, host), None, "{peer}");
        }
    }

    #[test]
    fn other_sites_names_are_refused() {
        let own = machine::name();
        for (host, in_loopback, in_any) in [
            ("localhost", None, None),
            ("LOCALHOST:8080", None, None),
            ("[::1]:10268", None, None),
            ("10.1.0.10:10268", Some(421), None),
            (own.as_str(), Some(421), None),
            ("netdp.example", Some(421), Some(421)),
            ("127.0.0.1.example", Some(421), Some(421)),
            ("localhost.example:80", Some(421), Some(421)),
            ("", Some(421), Some(421)),
        ] {
            assert_eq!(
                status(Loopback, "127.0.0.1", &[host]),
                in_loopback,
                "{host}"
            );
            assert_eq!(status(Any, "127.0.0.1", &[host]), in_any, "{host}");
        }
        assert_eq!(status(Loopback, "127.0.0.1", &[]), Some(421));
        let two = ["localhost", "netdp.example"];
        assert_eq!(status(Loopback, "127.0.0.1", &two), Some(421));
    }
}
