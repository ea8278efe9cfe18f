//! One-time work before the loop.

use super::modes::{Ebpf, Engine};
use super::{
    Agent, Memory, RunOptions, api, configuration, facts, findings, foreign, guard, monitor,
    no_address, node, ready, resting, tell,
};
use crate::config;
use crate::control::Control;
use crate::reconcile::State;
use crate::rollback::Fallback;
use crate::sources::file::Watcher;
use crate::state_dir::StateDir;
use crate::uplinks::Selection;
use anyhow::Result;
use std::collections::BTreeSet;

impl Agent {
    /// Puts the configuration in force.
    ///
    /// # Errors
    /// Returns an error if the agent cannot start: missing privileges, an unsuitable kernel or
    /// bpffs, or failing netlink.
    pub(super) async fn start(options: RunOptions, state_dir: StateDir) -> Result<Self> {
        ready::set(&options, false)?;
        let control = Control::start(options.kube.clone(), options.http_listen)?;
        // Both watches are set up before the first read, so that no change is missed.
        let watcher = Watcher::new(&options.config_paths);
        if let Some(problem) = watcher.problem() {
            log::warn!("{problem}");
        }
        let monitor = monitor::Reopening::new().await?;
        let (engine, no_ebpf) = Engine::start(&options)?;
        // State that an earlier agent left in force.
        let (mut keep, mut local, mut kernel) = (BTreeSet::new(), BTreeSet::new(), None);
        if let Some(Ebpf { datapath, .. }) = engine.as_ebpf() {
            keep.extend(datapath.known_uplinks()?);
            local = datapath.maps().local_addresses()?;
            kernel = Some(datapath.kernel());
        }
        let snapshot = monitor.snapshot().await?;
        let config = config::defaults(&options.config_options);
        let selection = Selection {
            masqueraded: config.masqueraded(),
            patterns: options.patterns.clone(),
            node_addrs: options.node_addrs.clone(),
            enable_ipv6: options.config_options.enable_ipv6,
            keep,
            names: BTreeSet::new(),
            with_guests: BTreeSet::new(),
        };
        let api = api::Followed::new(options.kube.is_some(), &state_dir);
        let ready_file = options.ready_file.clone();
        let memory = Memory::recall(&state_dir);
        let (had, reported) = (memory.had.clone(), memory.no_address.clone());
        let mut agent = Self {
            config,
            applied: State {
                local,
                ..State::default()
            },
            options,
            selection,
            monitor,
            watcher,
            in_force: configuration::InForce::after(memory.policy.clone()),
            identity: facts::Identity {
                mode: engine.name(),
                no_ebpf,
                kernel,
                ready_file,
            },
            found: findings::Findings::default(),
            attached: Vec::new(),
            memory,
            engine,
            state_dir,
            snapshot,
            resting: resting::Resting::default(),
            ready: false,
            starting: true,
            deferred: None,
            api,
            told: tell::Telling::new(control.is_some()),
            control,
            foreign: foreign::Foreign::new(),
            node: node::Node::default(),
            guard: guard::Guard::new(),
            no_address: no_address::NoAddress::after(had, reported),
        };
        agent.warn_of_fleeting_pins();
        agent.await_api().await;
        agent.first_config();
        if agent.give_back()? {
            agent.starting = false;
            agent.update_ready();
            return Ok(agent);
        }
        agent.save_fallback();
        agent.detach_strangers();
        agent.keep_untranslated().await;
        agent.mark_tracking();
        agent.learn_node().await;
        agent.reconcile();
        agent.first_chains().await;
        agent.forget_translated().await;
        agent.remove_orphans();
        if !agent.take_over() {
            agent.starting = false;
            agent.update_ready();
            agent.ask_foreign();
        }
        if let Some(datapath) = agent.engine.as_datapath() {
            datapath.set_started();
        }
        Ok(agent)
    }

    /// Saves the facts for `netdp detach --to-iptables`.
    fn save_fallback(&self) {
        let fallback = Fallback {
            chains: self.options.chains.clone(),
            config: self.options.config_options,
        };
        if let Err(err) = fallback.save(&self.state_dir) {
            log::warn!("{err:#}");
        }
    }
}
