//! `netdp config check` as a program: its input, output and exit status.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

const NETDP: &str = env!("CARGO_BIN_EXE_netdp");

const GOOD: &str = "nonMasqueradeCIDRs:\n- 10.0.0.0/8\nmasqueradeCIDRs:\n- 10.0.0.0/29\n";

/// Runs the check with `input` on standard input.
fn check(arguments: &[&str], input: &str) -> Result<Output> {
    let mut child = Command::new(NETDP)
        .env_remove("TARGETS")
        .args(["config", "check"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // The program closes its standard input if it does not read it.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    Ok(child.wait_with_output()?)
}

fn json(arguments: &[&str], input: &str) -> Result<Value> {
    let output = check(&[arguments, &["-o", "json"]].concat(), input)?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[track_caller]
fn prints(output: &Output, code: i32, lines: &[&str]) {
    let out = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{out}{told}");
    // Column widths vary.
    let squeezed: Vec<String> = out
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    for line in lines {
        assert!(
            squeezed.iter().any(|l| l.starts_with(line)),
            "{line}:\n{out}{told}"
        );
    }
}

#[test]
fn the_policy_is_a_table() -> Result<()> {
    let output = check(&["-"], GOOD)?;
    prints(
        &output,
        0,
        &[
            "differs: -:3: ip-masq-agent ignores masqueradeCIDRs",
            "PREFIX ACTION ORIGIN",
            "10.0.0.0/8 bypass -:2",
            "10.0.0.0/29 masquerade -:4",
            "169.254.0.0/16 bypass built-in",
            "everything else masquerade default",
            "IPv6 bypass off",
            "3 rules, 0 warnings; config ",
        ],
    );
    let bypass = [
        "--default-action=bypass",
        "--enable-ipv6",
        "--targets",
        "192.0.2.0/24",
    ];
    let output = check(&bypass, "")?;
    let rows = [
        "0.0.0.0/0 bypass --default-action",
        "192.0.2.0/24 masquerade --targets:1",
    ];
    prints(&output, 0, &rows);
    ensure!(!String::from_utf8_lossy(&output.stdout).contains("everything else"));
    let output = check(&["--nomasq-all-reserved-ranges"], "")?;
    prints(&output, 0, &["100.64.0.0/10 bypass built-in", "12 rules"]);
    Ok(())
}

#[test]
fn json_has_everything() -> Result<()> {
    let verdict = json(&["-"], GOOD)?;
    ensure!(verdict["valid"] == true && verdict["policy"]["others"] == "masquerade");
    ensure!(
        verdict["policy"]["rules"][1]["origins"] == serde_json::json!(["-:4"]),
        "{verdict}"
    );
    let bad = "masqLinkLocal: 3\nnonMasqueradeCIDRs:\n- 10.0.0.1/8\n";
    let verdict = json(&["-"], bad)?;
    ensure!(
        verdict["valid"] == false && verdict["policy"].is_null(),
        "{verdict}"
    );
    let lines: Vec<_> = (0..2)
        .map(|n| verdict["errors"][n]["line"].as_u64())
        .collect();
    ensure!(lines == [Some(1), Some(3)], "{verdict}");
    Ok(())
}

#[test]
fn the_exit_status_is_for_scripts() -> Result<()> {
    let odd = "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqLinkLokal: true\n";
    let warning = "warning: -:2: unknown key \"masqLinkLokal\"";
    prints(&check(&["-"], odd)?, 0, &[warning]);
    prints(&check(&["--strict", "-"], odd)?, 1, &[warning]);
    prints(&check(&["--strict", "-"], GOOD)?, 0, &[]);
    prints(
        &check(&["-"], "nonMasqueradeCIDRs:\n")?,
        1,
        &["error: -:1: nonMasqueradeCIDRs is null"],
    );
    prints(&check(&["/nonexistent/file"], "")?, 1, &[]);
    prints(&check(&["--default-action=maybe"], "")?, 2, &[]);
    prints(&check(&["--pod-cidr", "10.0.0.0"], "")?, 2, &[]);
    let pods = [
        "--pod-cidr=100.64.0.0/10,10.4.0.0/14",
        "--service-cidr=34.0.0.0/20",
    ];
    let expected = [
        "warning: policy: the pod CIDR 100.64.0.0/10 is masqueraded",
        "warning: policy: the service CIDR 34.0.0.0/20 is masqueraded",
        "4 rules, 2 warnings",
    ];
    prints(&check(&pods, "")?, 0, &expected);
    Ok(())
}

#[test]
fn files_and_directories_are_read_as_the_agent_reads_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::write(at("b"), GOOD)?;
    fs::write(at("a"), "nonMasqueradeCIDRs: [10.0.0.0/8]")?;
    fs::write(at("nat.rules"), "10.0.0.0/29 10.9.0.0/24")?;
    fs::write(at(".hidden"), "*")?;
    fs::write(at("backup~"), "*")?;
    let both = format!("10.0.0.0/8 bypass {}, {}", at("a:1"), at("b:2"));
    let shared = format!(
        "10.0.0.0/29 masquerade {}, {}",
        at("b:4"),
        at("nat.rules:1")
    );
    let path = dir.path().display().to_string();
    prints(&check(&[&path], "")?, 0, &[&both, &shared]);
    let named = [&*at("nat.rules"), &*at("b")];
    prints(&check(&named, "")?, 0, &[&shared]);
    let error = format!("error: {}: neither a regular file", "/dev/null");
    prints(&check(&["/dev/null"], "")?, 1, &[&error]);
    prints(
        &check(&["--format=nat-rules", "-"], "10.0.0.0/29")?,
        0,
        &["10.0.0.0/29 masquerade -:1"],
    );
    Ok(())
}

/// The format of `kubectl get configmap -o yaml`.
const CONFIG_MAP: &str = "\
apiVersion: v1
data:
  config: |

    nonMasqueradeCIDRs:
    - 10.0.0.0/8
    - 10.1.0.0/33
kind: ConfigMap
metadata:
  name: some-name
";

const LIST: &str = "\
apiVersion: v1
items:
- apiVersion: v1
  kind: ConfigMap
  data:
    config: '*'
  metadata:
    name: somebody-elses
- apiVersion: v1
  kind: ConfigMap
  data:
    config: |
      nonMasqueradeCIDRs:
      - 10.0.0.0/8
    other: '*'
  metadata:
    name: ip-masq-agent
- apiVersion: v1
  kind: ConfigMap
  data:
    nat.rules: \"192.0.2.0/24\\n 10.1.0.0/24 \\n\"
  metadata:
    name: k8s-custom-iptables
- apiVersion: v1
  kind: ConfigMap
  data:
    config: |-
      masqueradeCIDRs: [10.0.0.0/29]
  metadata:
    name: ours
    labels:
      netdp.io/config: ''
kind: List
";

#[test]
fn config_maps_are_looked_into() -> Result<()> {
    // Line numbers are those of the input.
    let error = "error: -:7: nonMasqueradeCIDRs[1]: \"10.1.0.0/33\" is not a CIDR";
    prints(&check(&["-"], CONFIG_MAP)?, 1, &[error]);
    let rows = [
        "10.0.0.0/8 bypass -:14",
        "10.0.0.0/29 masquerade -:28",
        "10.1.0.0/24 masquerade -:21 (nat.rules):2",
        "192.0.2.0/24 masquerade -:21 (nat.rules):1",
        "differs: -:28: ip-masq-agent reads one document only",
        "5 rules, 0 warnings",
    ];
    prints(&check(&["-"], LIST)?, 0, &rows);
    // The format of `kubectl get -o json`.
    let object = r#"{"apiVersion": "v1", "kind": "ConfigMap",
        "data": {"config": "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 10.0.0.0/8\n"}}"#;
    let warning = "warning: -:2 (config):3: nonMasqueradeCIDRs[1]: 10.0.0.0/8 is already listed";
    prints(
        &check(&["-"], object)?,
        0,
        &[warning, "10.0.0.0/8 bypass -:2 (config):2"],
    );
    for (nothing, error) in [
        (
            "apiVersion: v1\nkind: ConfigMap\ndata: {x: y}",
            "error: -:1: no configuration in it",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap",
            "error: -:1: no configuration in it",
        ),
        (
            "apiVersion: v1\nkind: List\nitems: []",
            "error: -:1: no configuration in it",
        ),
    ] {
        prints(&check(&["-"], nothing)?, 1, &[error]);
    }
    // A file in ip-masq-agent's format is not read as a manifest, whatever other keys it has.
    prints(
        &check(&["-"], "kind: ConfigMap\n")?,
        0,
        &["warning: -:1: unknown key \"kind\""],
    );
    Ok(())
}

#[test]
fn a_hundred_thousand_networks_are_checked() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (name, high) in [("a.rules", 11), ("b.rules", 12)] {
        // Each network of two addresses, and the first address in it, which is redundant.
        let words = (0..25_000).map(|n: u32| {
            let (a, b, c) = (n >> 15, n >> 7 & 255, n << 1 & 255);
            let at = format!("{high}.{}.{b}.{c}", a & 255);
            format!("{at}/31 {at}/32\n")
        });
        fs::write(dir.path().join(name), words.collect::<String>())?;
    }
    let path = dir.path().display().to_string();
    let verdict = json(&[&path, "--default-action=masquerade"], "")?;
    let count = |value: &Value| value.as_array().map(Vec::len);
    ensure!(count(&verdict["policy"]["rules"]) == Some(100_004));
    ensure!(count(&verdict["warnings"]) == Some(50_000));
    Ok(())
}

#[test]
fn hostile_input_is_refused() -> Result<()> {
    for (depth, error) in [
        (40, "error: -:1: nested"),
        (10_000, "error: -:1: not valid YAML"),
    ] {
        prints(&check(&["-"], &"[".repeat(depth))?, 1, &[error]);
    }
    let long = format!("# {}\n", "x".repeat(1 << 20));
    prints(&check(&["-"], &long)?, 1, &["error: -: larger than 1 MiB"]);
    Ok(())
}
