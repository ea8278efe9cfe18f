//! The content of deploy/monitoring: rules and alerts as promtool judges them, the dashboard, and the
//! files that repeat a part of them.

mod deploy;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use testbed::{WorkDir, output, unpacked};

/// Number of columns of Grafana's grid.
const COLUMNS: u64 = 24;

const ROWS: [&str; 4] = ["Now", "Traffic", "Ports", "Agent"];

#[test]
fn promtool_finds_the_rules_correct() -> Result<()> {
    let said = promtool(&["check", "rules", "alerts.yaml", "rules.yaml"])?;
    assert_eq!(said.matches("SUCCESS").count(), 2, "{said}");
    Ok(())
}

/// Each alert has two tests: it fires, and it does not.
#[test]
fn each_alert_fires_when_it_should_and_only_then() -> Result<()> {
    let said = promtool(&["test", "rules", "alerts_test.yaml"])?;
    ensure!(said.contains("SUCCESS"), "{said}");
    let tests = read("alerts_test.yaml")?;
    for alert in alerts()? {
        let of_it: Vec<_> = tests
            .split("- interval:")
            .filter(|test| test.contains(&format!("alertname: {alert}\n")))
            .collect();
        let quiet = |test: &&&str| test.contains("exp_alerts: []");
        ensure!(
            of_it.len() == 2 && of_it.iter().filter(quiet).count() == 1,
            "alerts_test.yaml needs a test in which {alert} fires, and one in which it does not"
        );
    }
    Ok(())
}

#[test]
fn each_alert_has_its_section_and_each_section_its_alert() -> Result<()> {
    let page = fs::read_to_string(deploy::directory()?.join("../docs/alerts.md"))?;
    let sections: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    assert_eq!(sections, alerts()?, "in this order");
    let rules = read("alerts.yaml")?;
    for section in page.split("\n## ").skip(1) {
        let (alert, text) = section.split_once('\n').context("an empty section")?;
        let url = format!("runbook_url: docs/alerts.md#{}\n", alert.to_lowercase());
        ensure!(rules.contains(&url), "{alert} has no {url}");
        for part in ["**Why it matters:**", "**Look:**", "**Do", "\n    netdp "] {
            ensure!(text.contains(part), "{alert} has no {part:?}");
        }
        let rule = rules
            .split("  - alert: ")
            .find(|rule| rule.starts_with(&format!("{alert}\n")))
            .context("no rule")?;
        let severity = text.trim_start().split(['*', '.', ',']).nth(1);
        let severity = format!("severity: {}\n", severity.unwrap_or_default());
        ensure!(rule.contains(&severity), "{alert} has not {severity}");
    }
    Ok(())
}

/// The object of the Prometheus operator has the groups of both files.
#[test]
fn the_prometheus_rule_is_the_rules() -> Result<()> {
    let mut text = "\
# Written by `NETDP_REWRITE_DOCS=1 cargo test -p xtask --test monitoring` from alerts.yaml and rules.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: netdp
  namespace: kube-system
  labels: {app.kubernetes.io/name: netdp}
spec:
  groups:
"
    .to_owned();
    for file in ["alerts.yaml", "rules.yaml"] {
        let rules = read(file)?;
        let (_, groups) = rules.split_once("groups:\n").context("no groups")?;
        for line in groups.lines() {
            text += &format!("  {line}\n");
        }
    }
    let path = directory()?.join("prometheusrule.yaml");
    if std::env::var_os("NETDP_REWRITE_DOCS").is_some() {
        fs::write(&path, &text)?;
    }
    ensure!(
        fs::read_to_string(&path)? == text,
        "{} is out of date: run this test with NETDP_REWRITE_DOCS=1",
        path.display()
    );
    Ok(())
}

/// The chart's files are links to those of deploy/monitoring; where links were copied as files, they
/// are the same.
#[test]
fn the_chart_has_the_same_files() -> Result<()> {
    let files = deploy::directory()?.join("helm/netdp/files");
    for file in ["alerts.yaml", "rules.yaml", "dashboard.json"] {
        assert_eq!(fs::read_to_string(files.join(file))?, read(file)?, "{file}");
    }
    Ok(())
}

#[test]
fn the_dashboard_is_well_formed() -> Result<()> {
    let dashboard = dashboard()?;
    let panels = list(&dashboard["panels"])?;
    let titles: Vec<_> = panels
        .iter()
        .filter(|panel| panel["type"] == "row")
        .map(|panel| &panel["title"])
        .collect();
    assert_eq!(titles, ROWS);
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    ensure!(
        ids.len() == panels.len() && !ids.contains(&None),
        "ids: {ids:?}"
    );
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().context("gridPos");
        let (x, y, w, h) = (at("x")?, at("y")?, at("w")?, at("h")?);
        ensure!(x + w <= COLUMNS, "{} is too wide", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            ensure!(taken.insert(cell), "{} overlaps another", panel["title"]);
        }
        if panel["type"] == "row" {
            continue;
        }
        for text in [
            &panel["description"],
            &panel["fieldConfig"]["defaults"]["unit"],
        ] {
            ensure!(
                text.as_str().is_some_and(|text| !text.is_empty()),
                "{} has no description or no unit",
                panel["title"]
            );
        }
        for target in list(&panel["targets"])? {
            assert_eq!(target["datasource"]["uid"], "${datasource}");
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}");
    }
    let variables: Vec<_> = list(&dashboard["templating"]["list"])?
        .iter()
        .map(|variable| &variable["name"])
        .collect();
    assert_eq!(
        variables,
        ["datasource", "cluster", "instance", "namespace"]
    );
    Ok(())
}

/// Promtool parses each query, and each recording rule has a query that uses it.
#[test]
fn the_dashboard_asks_correctly() -> Result<()> {
    let dir = WorkDir::new("queries")?;
    let mut queries = Vec::new();
    for panel in list(&dashboard()?["panels"])? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push(target["expr"].as_str().context("no expr")?.to_owned());
        }
    }
    ensure!(queries.len() > ROWS.len(), "{queries:?}");
    let rules: Vec<_> = queries
        .iter()
        .enumerate()
        .map(|(number, query)| json!({"record": format!("query:{number}"), "expr": query}))
        .collect();
    let file = dir.path().join("queries.yaml");
    let group = json!({"groups": [{"name": "queries", "rules": rules}]});
    fs::write(&file, group.to_string())?;
    promtool(&["check", "rules", &file.display().to_string()])?;
    for record in named("rules.yaml", "  - record: ")? {
        ensure!(
            queries.iter().any(|query| query.contains(&record)),
            "no panel uses {record}"
        );
    }
    Ok(())
}

fn alerts() -> Result<Vec<String>> {
    named("alerts.yaml", "  - alert: ")
}

/// Returns what follows these words at the begin of lines.
fn named(file: &str, words: &str) -> Result<Vec<String>> {
    let text = read(file)?;
    let names: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix(words))
        .map(str::to_owned)
        .collect();
    ensure!(!names.is_empty(), "{file} has no {words:?}");
    Ok(names)
}

fn dashboard() -> Result<Value> {
    Ok(serde_json::from_str(&read("dashboard.json")?)?)
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value
        .as_array()
        .with_context(|| format!("no list: {value}"))
}

fn read(file: &str) -> Result<String> {
    let path = directory()?.join(file);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

fn directory() -> Result<PathBuf> {
    Ok(deploy::directory()?.join("monitoring"))
}

fn promtool(arguments: &[impl AsRef<std::ffi::OsStr>]) -> Result<String> {
    let mut command = Command::new(unpacked::find("promtool")?);
    output(command.current_dir(directory()?).args(arguments))
}
