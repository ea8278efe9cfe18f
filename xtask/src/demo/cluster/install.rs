//! Scene: from an empty cluster to a pod that reaches a network without a route back to it.

use super::stage::{CONFIG, PATIENCE, Stage, show};
use crate::demo::clients::{curl, expect_source, source_by_curl};
use crate::demo::narrate;
use crate::demo::table::Seen;
use crate::shell;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use std::time::{Duration, Instant};
use testbed::{udp_ask, wait_some};

/// Timeout for the answer to one datagram. Answers take a fraction of a millisecond.
const ANSWER: Duration = Duration::from_millis(10);

/// kubectl's message after timeout(1) has ended the program with SIGTERM.
const TIMED_OUT: &str = "command terminated with exit code 143";

pub fn run(stage: &mut Stage) -> Result<()> {
    narrate(
        "Pods are in 172.16.0.0/24, their node is 10.1.0.10 in 10.1.0.0/16. The peered network \
         10.2.0.0/16\nhas a route to the node, and none to pods.\n",
    );
    let pod = &stage.pods[0];
    let (pod_ip, peered, near) = (
        pod.v4()?.into(),
        stage.cluster.peered.url(),
        stage.cluster.near.url(),
    );
    let mut seen = Seen::new();
    stage.kubectl("get pods -o wide")?;
    narrate("$ helm install netdp deploy/helm/netdp --namespace kube-system");
    stage.cluster.install(&stage.xtask, &json!({}))?;
    stage.kubectl("-n kube-system rollout status daemonset/netdp")?;
    stage.kubectl("-n kube-system get pods -o wide")?;

    shell::progress("a request, which will time out after 2 s");
    time_out(stage, &peered)?;
    curl(pod, &peered)?.expect_time_out(&peered)?;
    seen.row(
        "before",
        "wget 10.2.0.1/health",
        "timeout",
        pod_ip,
        "10.0.0.0/8 is bypassed by default",
    );

    narrate(&format!("\n$ cat config\n{CONFIG}"));
    let took = create_and_wait(stage)?;
    narrate(&took);
    for (url, wanted, why) in [
        (
            &peered,
            stage.node,
            "masqueraded: the reply goes to the node",
        ),
        (&near, pod_ip, "10.1.0.0/16 is a nonMasqueradeCIDR"),
    ] {
        let source = source_by_curl(pod, url)?;
        expect_source(source, wanted, "the right one")?;
        let client = format!("wget {}", url.trim_start_matches("http://"));
        seen.row("after", &client, "200", source, why);
    }
    stage.kubectl_until(
        &format!("exec client -- wget -q -O - {peered}"),
        &stage.node.to_string(),
    )?;
    seen.print();

    let events = stage.kubectl_until(
        "-n kube-system get events --field-selector involvedObject.name=ip-masq-agent",
        "ConfigApplied",
    )?;
    stage.kubectl_until("-n netdp-fleet get leases", "netdp-node-a")?;
    let config = events.split_once("config ").context("no configuration")?.1;
    let config: String = config.chars().take_while(char::is_ascii_hexdigit).collect();
    stage.netdp_until("fleet", &config)?;
    stage.kubectl_until("-n kube-system logs daemonset/netdp", "policy in force")?;
    Ok(())
}

/// Runs a request through kubectl that must time out.
fn time_out(stage: &Stage, url: &str) -> Result<()> {
    let line = format!("exec client -- timeout 2 wget -q -O - {url}");
    narrate(&format!("$ kubectl {line}"));
    match stage.cluster.kubectl(&line) {
        Ok(answer) => bail!("it should time out, but got: {answer}"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(TIMED_OUT), "not a timeout: {said}");
            show(TIMED_OUT);
            Ok(())
        }
    }
}

/// Creates the ConfigMap and sends datagrams to the peered network until one is answered.
fn create_and_wait(stage: &Stage) -> Result<String> {
    let to = stage.cluster.peered.echo();
    let pod = &stage.pods[0].ns;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || {
            wait_some(PATIENCE, "an answer from the peered network", || {
                udp_ask(pod, 0, to, ANSWER).ok()?;
                Some(start.elapsed())
            })
        });
        stage.create_config_map()?;
        let made = start.elapsed();
        let answered = match asking.join() {
            Ok(answered) => answered?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok(format!(
            "kubectl took {} ms; the first answer came {} ms after it was started.\n",
            made.as_millis(),
            answered.as_millis()
        ))
    })
}
