//! `netdp config check` and `netdp run` interpret files identically: manifests and multi-document
//! files as `kubectl get`, `kubectl kustomize` and `helm template` print them.

use crate::common::{NETDP, SOON, status};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use testbed::{Agent, AgentOptions, Bed, WorkDir, wait_for};

/// Content of a directory, and the expected result.
struct Case {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
    /// Rules that are not built in, or a part of the only error.
    expected: Result<&'static [&'static str], &'static str>,
}

const MANIFEST: &str = "\
apiVersion: v1
kind: ConfigMap
metadata:
  name: anything
data:
  config: |
    nonMasqueradeCIDRs:
    - 10.1.0.0/16
    - fd01::/16
  nat.rules: 198.51.100.0/24 fd02::/64
";

const CASES: &[Case] = &[
    Case {
        name: "a manifest",
        files: &[("map.yaml", MANIFEST)],
        expected: Ok(&[
            "10.1.0.0/16 bypass",
            "198.51.100.0/24 masquerade",
            "fd01::/16 bypass",
            "fd02::/64 masquerade",
        ]),
    },
    Case {
        name: "a manifest beside a plain file",
        files: &[
            ("a", "nonMasqueradeCIDRs: [10.2.0.0/16]\n"),
            ("map.yaml", MANIFEST),
        ],
        expected: Ok(&[
            "10.1.0.0/16 bypass",
            "10.2.0.0/16 bypass",
            "198.51.100.0/24 masquerade",
            "fd01::/16 bypass",
            "fd02::/64 masquerade",
        ]),
    },
    Case {
        name: "JSON",
        files: &[(
            "map.json",
            "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"data\": {\n\t\"config\": \
             \"nonMasqueradeCIDRs:\\n- 10.1.0.0/16\\n\"}}",
        )],
        expected: Ok(&["10.1.0.0/16 bypass"]),
    },
    Case {
        name: "what helm template prints",
        files: &[(
            "helm.yaml",
            "---\n# Source: netdp/templates/configmaps.yaml\napiVersion: v1\nkind: ConfigMap\n\
             metadata: {name: ip-masq-agent}\ndata:\n  config: |\n    nonMasqueradeCIDRs:\n    - \
             10.1.0.0/16\n---\n# Source: netdp/templates/daemonset.yaml\napiVersion: apps/v1\n\
             kind: DaemonSet\nmetadata: {name: netdp}\n---\n",
        )],
        expected: Ok(&["10.1.0.0/16 bypass"]),
    },
    Case {
        name: "several ConfigMaps",
        files: &[(
            "all.yaml",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ip-masq-agent}\ndata: {config: \
             'nonMasqueradeCIDRs: [10.1.0.0/16]'}\n---\napiVersion: v1\nkind: ConfigMap\n\
             metadata: {name: others}\ndata: {config: '*'}\n---\napiVersion: v1\nkind: ConfigMap\n\
             metadata: {name: more, labels: {netdp.io/config: ''}}\ndata: {any: \
             'nonMasqueradeCIDRs: [fd01::/16]'}\n",
        )],
        expected: Ok(&["10.1.0.0/16 bypass", "fd01::/16 bypass"]),
    },
    Case {
        name: "byte order marks where documents begin",
        files: &[
            (
                "map.yaml",
                "\u{feff}apiVersion: v1\nkind: ConfigMap\nmetadata: {name: k8s-custom-iptables}\n\
                 data:\n  nat.rules: |\n    \u{feff}198.51.100.0/24\n    fd02::/64\n",
            ),
            (
                "more.yaml",
                "nonMasqueradeCIDRs: [10.1.0.0/16]\n---\n\u{feff}nonMasqueradeCIDRs: ['fd01::/16']\n",
            ),
            (
                "block.yaml",
                "apiVersion: v1\nkind: ConfigMap\ndata:\n  config: |\n    \
                 \u{feff}nonMasqueradeCIDRs:\n    - 10.3.0.0/16\n",
            ),
        ],
        expected: Ok(&[
            "10.1.0.0/16 bypass",
            "10.3.0.0/16 bypass",
            "198.51.100.0/24 masquerade",
            "fd01::/16 bypass",
            "fd02::/64 masquerade",
        ]),
    },
    Case {
        name: "binaryData",
        files: &[(
            "map.yaml",
            "apiVersion: v1\nkind: ConfigMap\nbinaryData:\n  config: |\n    bm9uTWFzcXVlcmFkZUNJ\n    \
             RFJzOiBbMTAuMS4wLjAvMTZdCg==\n",
        )],
        expected: Ok(&["10.1.0.0/16 bypass"]),
    },
    Case {
        name: "binaryData that is none",
        files: &[(
            "map.yaml",
            "apiVersion: v1\nkind: ConfigMap\nbinaryData:\n  config: '%%%'\n",
        )],
        expected: Err("map.yaml:4: \"config\" in binaryData is not base64"),
    },
    Case {
        name: "a list",
        files: &[(
            "list.yaml",
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: \
             {name: k8s-custom-iptables}\n  data: {nat.rules: 198.51.100.0/24}\n",
        )],
        expected: Ok(&["198.51.100.0/24 masquerade"]),
    },
    Case {
        name: "a closing ---",
        files: &[("c", "nonMasqueradeCIDRs:\n- 10.1.0.0/16\n---\n")],
        expected: Ok(&["10.1.0.0/16 bypass"]),
    },
    Case {
        name: "a closing --- in a manifest and in its value",
        files: &[(
            "map.yaml",
            "---\napiVersion: v1\nkind: ConfigMap\ndata:\n  config: |\n    ---\n    \
             nonMasqueradeCIDRs:\n    - 10.1.0.0/16\n    ---\n---\n",
        )],
        expected: Ok(&["10.1.0.0/16 bypass"]),
    },
    Case {
        name: "an end marker, a directive and line ends of Windows",
        files: &[(
            "c",
            "%YAML 1.2\r\n---\r\nnonMasqueradeCIDRs:\r\n- 10.1.0.0/16\r\n...\r\n---\r\n",
        )],
        expected: Ok(&["10.1.0.0/16 bypass"]),
    },
    Case {
        name: "several configurations in a file",
        files: &[(
            "c",
            "nonMasqueradeCIDRs: [10.1.0.0/16]\n---\nnonMasqueradeCIDRs: ['fd01::/16']\n",
        )],
        expected: Ok(&["10.1.0.0/16 bypass", "fd01::/16 bypass"]),
    },
    Case {
        name: "a manifest without a configuration",
        files: &[(
            "map.yaml",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {x: y}\n",
        )],
        expected: Err("map.yaml:1: no configuration in it; expected a ConfigMap with a key config"),
    },
    Case {
        name: "objects of other kinds",
        files: &[(
            "all.yaml",
            "\napiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: netdp}\n",
        )],
        expected: Err("all.yaml:2: no configuration in it; expected a ConfigMap"),
    },
    Case {
        name: "ConfigMaps of others",
        files: &[(
            "all.yaml",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {config: '{}'}\n---\n\
             apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {config: '{}'}\n",
        )],
        expected: Err("found the ConfigMap \"a\", the ConfigMap \"b\""),
    },
    Case {
        name: "an error in a manifest",
        files: &[(
            "map.yaml",
            "apiVersion: v1\nkind: ConfigMap\ndata:\n  config: |\n    nonMasqueradeCIDRs:\n    - \
             10.1.0.1/16\n",
        )],
        expected: Err("map.yaml:6: nonMasqueradeCIDRs[0]: \"10.1.0.1/16\" is not aligned"),
    },
    Case {
        name: "an error in a second document",
        files: &[("c", "{}\n---\nnonMasqueradeCIDRs:\n- 10.1.0.1/16\n")],
        expected: Err("c:4: nonMasqueradeCIDRs[0]: \"10.1.0.1/16\" is not aligned"),
    },
];

fn check(dir: &Path) -> Result<Value> {
    let output = Command::new(NETDP)
        .env_remove("TARGETS")
        .args(["config", "check", "--enable-ipv6", "-o", "json"])
        .arg(dir)
        .output()?;
    serde_json::from_slice(&output.stdout).context("what check prints")
}

/// Returns the rules with a written origin from the output of `check`.
fn written(verdict: &Value) -> Vec<String> {
    let rules = verdict["policy"]["rules"].as_array();
    let rules = rules.into_iter().flatten();
    rules
        .filter(|rule| rule["origins"][0] != "built-in")
        .map(|rule| format!("{} {}", rule["prefix"], rule["action"]).replace('"', ""))
        .collect()
}

/// Both give the same result for each case, and it is the expected one.
#[test]
fn check_and_run_read_alike() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let dir = WorkDir::new("one-reading")?;
    let agent = AgentOptions::new(NETDP).config(dir.path());
    let agent = Agent::start(&bed.node, agent.arg("--enable-ipv6"))?;
    for case in CASES {
        let show = || format!("{}: {}", case.name, agent.log());
        for old in fs::read_dir(dir.path())? {
            fs::remove_file(old?.path())?;
        }
        let config = || Ok::<_, anyhow::Error>(status(&agent)?["report"]["config"].clone());
        wait_for(SOON, "the defaults", || {
            config().is_ok_and(|it| it["source"] == "defaults (no file)")
        })
        .with_context(show)?;
        for (name, text) in case.files {
            // Atomically, as an editor does.
            let new = dir.path().join(".new");
            fs::write(&new, text)?;
            fs::rename(new, dir.path().join(name))?;
        }
        let verdict = check(dir.path())?;
        match case.expected {
            Ok(rules) => {
                assert_eq!(written(&verdict), rules, "{}: {verdict:#}", case.name);
                let hash = &verdict["policy"]["hash"];
                wait_for(SOON, "the agent to agree", || {
                    config().is_ok_and(|it| it["hash"] == *hash && it["source"] == "files")
                })
                .with_context(show)?;
            }
            Err(words) => {
                let error = &verdict["errors"][0];
                let (file, line) = (error["file"].as_str(), error["line"].as_u64());
                let (file, line) = (file.context("no file")?, line.context("no line")?);
                let error = format!("{file}:{line}: {}", error["message"].as_str().unwrap_or(""));
                ensure!(error.contains(words), "{}: {error}", case.name);
                wait_for(SOON, "the agent to agree", || {
                    config().is_ok_and(|it| it["rejected"] == serde_json::json!([error]))
                })
                .with_context(show)?;
            }
        }
    }
    Ok(())
}

/// The agent logs its interpretation of a manifest.
#[test]
fn what_is_read_and_left_out_is_said() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let dir = WorkDir::new("one-reading")?;
    let file = dir.path().join("all.yaml");
    fs::write(
        &file,
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n---\napiVersion: v1\nkind: ConfigMap\n\
         metadata: {name: m}\ndata: {config: 'nonMasqueradeCIDRs: [10.1.0.0/16]'}\n",
    )?;
    let agent = Agent::start(&bed.node, AgentOptions::new(NETDP).config(dir.path()))?;
    let file = file.display();
    for words in [
        format!("{file}:5: the configuration in the ConfigMap \"m\" is read"),
        format!("{file}:1: skipped, no configuration in: the Secret \"s\""),
    ] {
        ensure!(agent.log().contains(&words), "{words}: {}", agent.log());
        let output = Command::new(NETDP)
            .args(["config", "check"])
            .arg(dir.path())
            .output()?;
        let told = String::from_utf8_lossy(&output.stdout);
        ensure!(told.contains(&format!("note: {words}")), "{told}");
    }
    Ok(())
}
