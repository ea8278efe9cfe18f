//! Scene: every kind of agent restart, with requests running throughout.

use super::stage::{Stage, show_load};
use crate::demo::narrate;
use crate::shell;
use anyhow::{Context as _, Result, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde_json::json;
use std::time::Instant;

/// Description of a step, and the function that performs it.
type Step = (&'static str, fn(&mut Stage) -> Result<()>);

const STEPS: [Step; 4] = [
    ("rolling update (helm upgrade)", roll),
    ("the agent is killed", |stage| stage.cluster.kill_agent()),
    ("containerd is killed and started", |stage| {
        stage.cluster.restart_containerd()
    }),
    ("the kubelet is killed and started", |stage| {
        stage.cluster.restart_kubelet()
    }),
];

pub fn run(stage: &mut Stage) -> Result<()> {
    narrate(
        "Both pods have connections to the peered network that stay open, some of them idle, begin \
         new ones without\npause, and ping.\n",
    );
    let load = stage.load()?;
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_header(["", "took", "connections so far", "lost"]);
    for (what, step) in STEPS {
        shell::progress(what);
        let start = Instant::now();
        step(stage).with_context(|| what.to_owned())?;
        load.step().with_context(|| what.to_owned())?;
        let (opened, lost) = load.tally().connections();
        table.add_row([
            what.to_owned(),
            format!("{:.1} s", start.elapsed().as_secs_f32()),
            opened.to_string(),
            lost.to_string(),
        ]);
    }
    narrate(&table.to_string());
    stage.kubectl_until("-n kube-system get pods", "1/1")?;
    show_load(&load.end()?)
}

fn roll(stage: &mut Stage) -> Result<()> {
    let before = stage.cluster.agent(".metadata.name")?;
    let values = json!({"podAnnotations": {"example.com/round": "2"}});
    stage.cluster.upgrade(&stage.xtask, &values)?;
    let after = stage.cluster.agent(".metadata.name")?;
    ensure!(before != after, "{before} was not replaced");
    Ok(())
}
