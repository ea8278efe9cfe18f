//! One-time work before the loop.

use super::metrics::measure;
use super::modes::{Ebpf, Engine};
use super::{
    Agent, Memory, RunOptions, api, events, facts, findings, for_room, foreign, guard, in_force,
    lost_addresses, monitor, networks, no_address, node, publish, reach, ready,
};
use crate::config::{self, AutoApi, AutoSource};
use crate::control::Control;
use crate::events::Recent;
use crate::metrics::Metrics;
use crate::page::Place;
use crate::pods::{ApiClaims, PodNames, Recorder};
use crate::reconcile::State;
use crate::rollback::Fallback;
use crate::sources::file::Watcher;
use crate::state_dir::StateDir;
use crate::uplinks::{Selection, Snapshot};
use anyhow::Result;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Agent {
    /// Creates an agent that has put nothing in force yet. The datapath is opened last, and nothing is
    /// awaited after it: a future that is dropped leaves nothing behind.
    ///
    /// # Errors
    /// Returns an error if privileges are missing, or the kernel, the bpffs or netlink does not
    /// suffice.
    pub(super) async fn new(mut options: RunOptions, state_dir: StateDir) -> Result<Self> {
        ready::set(&options, false)?;
        let claims = match options.pod_names.source {
            PodNames::Api => Some(ApiClaims::default()),
            PodNames::Auto | PodNames::Cni | PodNames::Off => None,
        };
        let recent = Recent::after(&state_dir);
        let page = Place {
            bpffs: options.bpffs.clone(),
            state_dir: options.state_dir.clone(),
            cni_dir: options.pod_names.cni_dir.clone(),
            recent: recent.clone(),
        };
        let page = (page, options.http_page);
        let listen = options.listen();
        let metrics = listen.any().then(|| Arc::new(Metrics::new()));
        let control = Control::start(
            options.kube.clone(),
            claims.clone(),
            listen,
            metrics.as_ref(),
            page,
        )?;
        // Both watches are set up before the first read, so that no change is missed.
        let watcher = Watcher::new(&options.config_paths);
        if let Some(problem) = watcher.problem() {
            log::warn!("{problem}");
        }
        let monitor = monitor::Reopening::new().await?;
        let (mut engine, no_ebpf) = Engine::start(&options, &recent)?;
        // State that an earlier agent left in force.
        let (mut keep, mut local, mut kernel) = (BTreeSet::new(), BTreeSet::new(), None);
        if let Some(Ebpf { datapath, .. }) = engine.as_ebpf() {
            keep.extend(datapath.earlier_uplinks()?);
            local = datapath.maps().local_addresses()?;
            kernel = Some(datapath.kernel());
        }
        let pods = match engine.as_ebpf() {
            Some(_) => Recorder::start(
                &options.pod_names,
                claims,
                state_dir.clone(),
                &options.timeouts,
            )?,
            None => None,
        };
        let events = events::Events::start(&mut engine, &options.bpffs, &options.state_dir, recent);
        let mode = engine.name();
        let version = env!("CARGO_PKG_VERSION");
        events.agent(
            &format!("netdp {version} has started, in mode {mode}"),
            false,
        );
        if let (Some(metrics), Some(sender)) = (&metrics, events.sender()) {
            metrics.add(Arc::clone(sender.counters()));
        }
        if let (Some(metrics), Some(ebpf)) = (&metrics, engine.as_ebpf_mut()) {
            measure(metrics, ebpf, &options, pods.as_ref())?;
        }
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
        let api = api::ApiState::new(options.kube.is_some(), &state_dir);
        let networks = &mut options.cluster_cidrs.auto;
        if options.kube.is_some() {
            networks.api = AutoApi::Followed;
            // Flags are those of this agent.
            let mut saved = state_dir.last_networks();
            saved.retain(|network| network.source != AutoSource::Flag);
            networks.add_saved(saved);
        } else {
            networks.api = AutoApi::NotFollowed;
        }
        let ready_file = options.ready_file.clone();
        let on_reload = options.setup.on_reload;
        let memory = Memory::recall(&state_dir);
        let (had, reported) = (memory.had.clone(), memory.no_address.clone());
        Ok(Self {
            config,
            applied: State {
                local,
                ..State::default()
            },
            options,
            selection,
            monitor,
            watcher,
            in_force: in_force::InForce::after(memory.policy.clone()),
            identity: facts::Identity {
                mode: engine.name(),
                no_ebpf,
                on_reload: kernel.map(|_| on_reload),
                kernel,
                ready_file,
            },
            found: findings::Findings::default(),
            attached: Vec::new(),
            memory,
            engine,
            reach: reach::Reach::after(&state_dir),
            for_room: for_room::ForRoom::default(),
            state_dir,
            snapshot: Snapshot::default(),
            lost_addresses: lost_addresses::LostAddresses::default(),
            ready: false,
            starting: true,
            deferred: None,
            api,
            publisher: publish::StatusPublisher::new(control.is_some()),
            control,
            foreign: foreign::Foreign::new(),
            node: node::Node::default(),
            guard: guard::Guard::new(),
            followed: networks::Followed::default(),
            no_address: no_address::NoAddress::after(had, reported),
            metrics,
            pods,
            events,
        })
    }

    /// Puts the configuration in force. If the future is dropped, the memory file names everything that
    /// was written, and [`end`](Self::end) finds it.
    ///
    /// # Errors
    /// Returns an error if the network cannot be read, or programs of an earlier agent are in force
    /// and their mappings cannot be handed over to netfilter.
    pub(super) async fn start(&mut self) -> Result<()> {
        self.snapshot = self.monitor.snapshot().await?;
        self.check_pins_persist();
        self.await_api().await;
        self.await_networks().await;
        self.first_config();
        self.save_planned_chains();
        if self.begin_rollback()? {
            self.starting = false;
            self.update_ready();
            return Ok(());
        }
        self.save_fallback();
        self.detach_stale_uplinks();
        self.pin_untranslated_flows().await;
        self.mark_conntrack();
        self.detect_node().await;
        self.reconcile();
        self.await_first_chains().await;
        self.delete_translated_flows().await;
        self.remove_orphans();
        if !self.take_over() {
            self.starting = false;
            self.update_ready();
            self.scan_foreign();
        }
        if let Some(datapath) = self.engine.as_datapath() {
            datapath.set_started();
        }
        Ok(())
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
