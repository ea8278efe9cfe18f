//! `demo cluster`: netdp in a real cluster of one node, shown through kubectl.

mod install;
mod stage;
mod takeover;
mod update;

use super::{check, end, narrate, scene};
use crate::{setup, shell};
use anyhow::{Context as _, Result};
use stage::Stage;
use std::fmt::Write as _;
use std::time::Instant;
use xtask::cluster::Cluster;
use xtask::image;

/// Sets up, builds the images, starts the cluster and plays the scenes.
pub fn run() -> Result<()> {
    check("cargo xtask demo cluster")?;
    let mut times = Times::default();
    times.measure("set-up", setup::run)?;
    let image = times.measure("image", || {
        shell::progress("the image");
        image::make(image::NAME, &image::target_dir()?)
    })?;
    let start = Instant::now();
    let cluster = times.measure("cluster", || {
        shell::progress(
            "a cluster of one node: etcd, the control plane, containerd, kubelet, kube-proxy",
        );
        Cluster::start(&[&image.archive])
    })?;
    let mut stage = Stage::new(cluster, image.program)?;
    times.measure("scenes", || {
        scene("1. a pod, a peered network, and a ConfigMap", || {
            install::run(&mut stage)
        })?;
        scene("2. updates and crashes under load", || {
            update::run(&mut stage)
        })?;
        scene("3. replacing ip-masq-agent, and back", || {
            takeover::run(&mut stage)
        })
    })?;
    times.measure("removal", || {
        drop(stage);
        Ok(())
    })?;
    narrate(&format!("\n{}", times.report()));
    end(start);
    Ok(())
}

/// Duration of each part.
#[derive(Default)]
struct Times(Vec<(&'static str, f32)>);

impl Times {
    fn measure<T>(&mut self, what: &'static str, part: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let done = part().with_context(|| what.to_owned())?;
        self.0.push((what, start.elapsed().as_secs_f32()));
        Ok(done)
    }

    fn report(&self) -> String {
        let mut text = "This run:".to_owned();
        for (what, seconds) in &self.0 {
            let _ = write!(text, " {what} {seconds:.1} s;");
        }
        text + "\nSetup and the image take long only the first time, when everything is built."
    }
}
