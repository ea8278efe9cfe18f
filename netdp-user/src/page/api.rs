//! `/api/v1`: the output of the commands with `-o json`.

use super::query::Query;
use super::{Place, secured};
use crate::cli::parse_age;
use crate::codes::{self, Code};
use crate::events::Kind;
use crate::explain::answer::{self, Answers, Case, End, Node};
use crate::flows::{self, By, Filter, Format, View};
use crate::http::{Request, Response};
use crate::monitor::Line;
use crate::policy;
use crate::policy::history::{self, Ask};
use crate::reach;
use crate::report::Status;
use crate::state_dir::StateDir;
use anyhow::Error;
use clap::ValueEnum as _;
use hyper::StatusCode;
use serde::Serialize;
use std::net::IpAddr;

/// Version of the shape of what is no command's output.
const SCHEMA: u32 = 1;

/// The most policies, or groups of mappings, in one answer.
const MOST: usize = 10_000;

/// Parameters of an explanation.
pub(super) const EXPLAIN: &[&str] = &["from", "to", "protocol"];

/// The reason for which there is no answer: the status, and a line for people.
pub(super) type Problem = (StatusCode, String);

/// A path, and how it is answered.
pub(super) struct Path {
    pub path: &'static str,
    /// The command whose output it is.
    command: &'static str,
    /// Its parameters.
    parameters: &'static [&'static str],
    output: fn(&Place, &Query) -> Result<String, Problem>,
}

/// All paths.
pub(super) const PATHS: &[Path] = &[
    Path {
        path: "/api/v1",
        command: "",
        parameters: &[],
        output: |_, _| index(),
    },
    Path {
        path: "/api/v1/codes",
        command: "netdp codes",
        parameters: &["code"],
        output: |_, query| {
            let code = query.parsed::<Code>("code").map_err(wrong)?;
            codes::json(code).map_err(failed)
        },
    },
    Path {
        path: "/api/v1/events",
        command: "netdp monitor",
        parameters: &[],
        output: |place, _| events(place),
    },
    Path {
        path: "/api/v1/explain",
        command: "netdp explain",
        parameters: EXPLAIN,
        output: |place, query| answers(place, query)?.json().map_err(failed),
    },
    Path {
        path: "/api/v1/history",
        command: "netdp history",
        parameters: &["n", "generation", "to"],
        output: history,
    },
    Path {
        path: "/api/v1/policy",
        command: "netdp policy",
        parameters: &["unused", "for"],
        output: policy,
    },
    Path {
        path: "/api/v1/status",
        command: "netdp status",
        parameters: &[],
        output: |place, _| {
            let status = Status::gather(&place.bpffs, &place.state_dir).map_err(failed)?;
            status.json().map_err(failed)
        },
    },
    Path {
        path: "/api/v1/suggest",
        command: "netdp suggest",
        parameters: &[],
        output: |place, _| {
            let output = reach::output(&place.bpffs, &place.state_dir, reach::Format::Json);
            output.map(|(text, _)| text).map_err(failed)
        },
    },
    Path {
        path: "/api/v1/summary",
        command: "netdp flows --summary",
        parameters: &["by", "n"],
        output: summary,
    },
];

impl Path {
    /// Answers a request.
    pub(super) fn answer(&self, place: &Place, request: &Request) -> Response {
        let query = Query::of(request, self.parameters).map_err(wrong);
        let output = query.and_then(|query| (self.output)(place, &query));
        let (status, text) = match output {
            Ok(text) => (StatusCode::OK, text),
            Err((status, problem)) => (status, error(&problem)),
        };
        secured(Response::new(status, "application/json", text))
    }
}

/// Explains what a query asks.
pub(super) fn answers(place: &Place, query: &Query) -> Result<Answers, Problem> {
    let protocol = query.parsed_by("protocol", answer::protocol);
    let protocol = protocol.map_err(wrong)?.unwrap_or(6);
    let from = query.parsed_by("from", End::parse).map_err(wrong)?;
    let to = query.parsed_by("to", End::parse).map_err(wrong)?;
    let to = to.ok_or_else(|| wrong("give to=ADDRESS or to=ADDRESS:PORT".to_owned()))?;
    // A name would have the agent ask the name servers whatever a reader likes.
    if to.name.parse::<IpAddr>().is_err() {
        let problem = format!(
            "to={}: give an address; `netdp explain` also resolves names",
            to.name
        );
        return Err(wrong(problem));
    }
    let names = place.names();
    let cases = Case::of(from.as_slice(), std::slice::from_ref(&to), protocol, &names);
    let cases = cases.map_err(|err| wrong(format!("{err:#}")))?;
    let node = Node::open(&place.bpffs, &place.state_dir, None, &names);
    let mut node = node.map_err(failed)?;
    let answers = answer::explain_all(&mut node, &cases).map_err(failed)?;
    Ok(Answers::new(
        node.agent_running,
        node.rejected().to_vec(),
        answers,
    ))
}

/// Content of `/api/v1/events`.
#[derive(Debug, Serialize)]
struct Events {
    schema: u32,
    /// The kinds of single flows that are kept now, because somebody listens.
    listening: Vec<Kind>,
    /// The newest first.
    events: Vec<Line>,
}

fn events(place: &Place) -> Result<String, Problem> {
    let events = Events {
        schema: SCHEMA,
        listening: place.recent.heard(),
        events: place.events(),
    };
    let text = serde_json::to_string_pretty(&events).map_err(failed)?;
    Ok(text + "\n")
}

fn history(place: &Place, query: &Query) -> Result<String, Problem> {
    let n = query.parsed::<usize>("n").map_err(wrong)?;
    let generation = query.parsed("generation").map_err(wrong)?;
    let to = query.parsed("to").map_err(wrong)?;
    let ask = match (generation, to) {
        (None, None) => Ask::List(n.unwrap_or(20).min(MOST)),
        (Some(generation), None) => Ask::Rules(generation),
        (Some(from), Some(to)) => Ask::Changes(from, to),
        (None, Some(_)) => return Err(wrong("give generation with to".to_owned())),
    };
    history::output(&place.state_dir, ask, true).map_err(failed)
}

fn policy(place: &Place, query: &Query) -> Result<String, Problem> {
    let unused = query.parsed_by("unused", parse_age).map_err(wrong)?;
    let query = policy::Query {
        unused: query.has("unused").then_some(unused),
        destination: query.parsed("for").map_err(wrong)?,
        json: true,
    };
    policy::output(&place.bpffs, &place.state_dir, &query).map_err(failed)
}

fn summary(place: &Place, query: &Query) -> Result<String, Problem> {
    let by = query.parsed_by("by", |by| By::from_str(by, false));
    let limit = query.parsed::<usize>("n").map_err(wrong)?;
    let options = flows::Options {
        filter: Filter::default(),
        view: View::Summary(by.map_err(wrong)?.unwrap_or(By::Pod)),
        sort: None,
        limit: Some(limit.unwrap_or(MOST).min(MOST)),
        watch: None,
        format: Format::Json,
        cni_dir: place.cni_dir.clone(),
    };
    let mut out = Vec::new();
    let dir = StateDir::at(&place.state_dir);
    flows::write(&place.bpffs, &dir, &options, &mut out).map_err(failed)?;
    String::from_utf8(out).map_err(failed)
}

/// A path in the index.
#[derive(Debug, Serialize)]
struct Entry {
    path: &'static str,
    command: &'static str,
    parameters: &'static [&'static str],
}

/// Content of `/api/v1`.
#[derive(Debug, Serialize)]
struct Index {
    schema: u32,
    paths: Vec<Entry>,
}

fn index() -> Result<String, Problem> {
    let paths = PATHS.iter().filter(|it| !it.command.is_empty());
    let paths = paths.map(|it| Entry {
        path: it.path,
        command: it.command,
        parameters: it.parameters,
    });
    let index = Index {
        schema: SCHEMA,
        paths: paths.collect(),
    };
    let text = serde_json::to_string_pretty(&index).map_err(failed)?;
    Ok(text + "\n")
}

/// An answer that there is none.
#[derive(Debug, Serialize)]
struct Failure<'a> {
    schema: u32,
    error: &'a str,
}

fn error(problem: &str) -> String {
    let failure = Failure {
        schema: SCHEMA,
        error: problem,
    };
    serde_json::to_string_pretty(&failure).unwrap_or_default() + "\n"
}

/// Returns the problem with a request.
const fn wrong(problem: String) -> Problem {
    (StatusCode::BAD_REQUEST, problem)
}

/// Returns the problem with the node.
fn failed(err: impl Into<Error>) -> Problem {
    let problem = format!("{:#}", err.into());
    (StatusCode::SERVICE_UNAVAILABLE, problem)
}
