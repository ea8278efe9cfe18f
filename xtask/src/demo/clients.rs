//! Clients in the pods.

use super::TIME_OUT;
use anyhow::{Context as _, Result, bail, ensure};
use std::net::{IpAddr, SocketAddr};
use std::process::Output;
use testbed::{Host, Netns, wait_some};

/// curl's exit status after a timeout.
const CURL_TIMED_OUT: i32 = 28;

/// timeout(1)'s exit status after a timeout.
const TIMEOUT_TIMED_OUT: i32 = 124;

/// Outcome of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Output of the client, trimmed.
    Answer(String),
    TimedOut,
}

impl Outcome {
    /// Returns an error unless the attempt timed out.
    pub fn expect_time_out(&self, client: &str) -> Result<()> {
        match self {
            Self::TimedOut => Ok(()),
            Self::Answer(answer) => bail!("{client} should time out, but got: {answer}"),
        }
    }

    /// Returns the answer, or an error if there was none.
    pub fn expect_answer(self, client: &str) -> Result<String> {
        match self {
            Self::Answer(answer) => Ok(answer),
            Self::TimedOut => bail!("{client} timed out after {TIME_OUT:?}"),
        }
    }
}

/// Runs curl's GET in a pod; the answer is the body, and the status must be 200.
pub fn curl(pod: &Netns, url: &str) -> Result<Outcome> {
    let out = pod
        .command("curl")
        .args(["--silent", "--show-error", "--fail", "--max-time"])
        .arg(TIME_OUT.as_secs().to_string())
        .arg(url)
        .output()
        .context("starting curl")?;
    outcome(&out, CURL_TIMED_OUT).with_context(|| format!("curl {url}"))
}

/// Runs curl's GET of a /health page, whose body is the source address that the server saw.
pub fn source_by_curl(pod: &Netns, url: &str) -> Result<IpAddr> {
    let body = curl(pod, url)?.expect_answer(&format!("curl {url}"))?;
    body.parse()
        .with_context(|| format!("{url}: the body should be an address: {body:?}"))
}

/// Runs a redis-cli command in a pod.
pub fn redis(pod: &Netns, server: IpAddr, command: &[&str]) -> Result<Outcome> {
    let out = pod
        .command("timeout")
        .arg(TIME_OUT.as_secs().to_string())
        .args(["redis-cli", "-h", &server.to_string()])
        .args(command)
        .output()
        .context("starting redis-cli")?;
    outcome(&out, TIMEOUT_TIMED_OUT).context("redis-cli")
}

fn outcome(out: &Output, timed_out: i32) -> Result<Outcome> {
    if out.status.code() == Some(timed_out) {
        return Ok(Outcome::TimedOut);
    }
    ensure!(
        out.status.success(),
        "{}: {}",
        out.status,
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(Outcome::Answer(
        String::from_utf8_lossy(&out.stdout).trim().to_owned(),
    ))
}

/// Returns the source address of a half-open connection: the server's SYN-ACK has no route back.
pub fn half_open_source(server: &Host) -> Result<IpAddr> {
    let what = format!("a half-open connection on {}", server.name());
    let peer = wait_some(TIME_OUT, &what, || {
        let sockets = server
            .run(&["ss", "-Htn", "state", "syn-recv"])
            .unwrap_or_default();
        let peer = sockets.lines().next()?.split_whitespace().last()?;
        peer.parse::<SocketAddr>().ok()
    })?;
    Ok(peer.ip())
}

/// Returns an error unless the server saw the expected source address.
pub fn expect_source(seen: IpAddr, wanted: IpAddr, whose: &str) -> Result<()> {
    ensure!(
        seen == wanted,
        "the server should see {whose} address {wanted}, but saw {seen}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn ended(script: &str) -> Result<Outcome> {
        let out = Command::new("sh").args(["-c", script]).output().unwrap();
        outcome(&out, CURL_TIMED_OUT)
    }

    #[test]
    fn only_a_time_out_is_one() {
        assert_eq!(ended("exit 28").unwrap(), Outcome::TimedOut);
        assert_eq!(ended("echo ok").unwrap(), Outcome::Answer("ok".into()));
        assert!(ended("exit 7").is_err());
    }

    #[test]
    fn expectations_fail() {
        assert!(Outcome::TimedOut.expect_answer("x").is_err());
        assert!(Outcome::Answer(String::new()).expect_time_out("x").is_err());
        let (a, b) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        assert!(expect_source(a, b, "the node's").is_err());
    }
}
