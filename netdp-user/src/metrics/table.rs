//! The metrics: each with its name, type, labels, the most series that it can have, and its meaning
//! in one list, from which docs/metrics.md is generated.

use std::fmt;

/// Type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A number that only grows while what it counts in exists.
    Counter,
    /// A number as of now.
    Gauge,
    /// A distribution.
    Histogram,
    /// Text in labels; the value is 1.
    Info,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        })
    }
}

/// Source of a metric, with the time at which it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// At each scrape, from pinned maps: it goes on where it was after a restart of the agent.
    Maps,
    /// With each full pass of the sweep; counters begin with the agent's process.
    Sweep,
    /// With each change, five seconds later at most; counters begin with the agent's process.
    Agent,
    /// At each scrape, from the kernel.
    Process,
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Maps => "maps",
            Self::Sweep => "sweep",
            Self::Agent => "agent",
            Self::Process => "process",
        })
    }
}

/// A metric.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Metric {
    /// Name of its samples; those of a histogram have a suffix.
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// The most series; of a histogram the most distributions.
    pub most: usize,
    pub read: Read,
    pub help: &'static str,
}

/// The most interfaces that are told apart, including all others together.
pub(super) const INTERFACES: usize = netdp_common::layout::UPLINK_NUMBERS as usize;

/// The most namespaces, or pods, that have series of their own.
pub(super) const NAMESPACES: usize = 64;
pub(super) const PODS: usize = 300;

/// The most destinations that `--metrics-top` takes.
pub(crate) const MOST_TOP: usize = 100;

macro_rules! metrics {
    ($($constant:ident $name:literal $kind:ident [$($label:literal),*] $most:tt $read:ident $help:literal;)+) => {
        $(pub(super) const $constant: &Metric = &Metric {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            most: $most,
            read: Read::$read,
            help: $help,
        };)+

        /// All metrics, in the order in which they are served.
        pub(super) const ALL: &[&Metric] = &[$($constant),+];
    };
}

metrics! {
    PACKETS "netdp_packets_total" Counter ["uplink", "direction", "outcome"] (INTERFACES * 8) Maps
        "IP packets that passed a hook, by what was done with them.";
    BYTES "netdp_bytes_total" Counter ["uplink", "direction", "outcome"] (INTERFACES * 8) Maps
        "Bytes of these packets without their link headers.";
    DROPPED "netdp_dropped_packets_total" Counter ["uplink", "direction", "reason"] (INTERFACES * 15) Maps
        "Packets that were dropped, by reason; each reason has one direction, or counts both (either).";
    ICMP_ERRORS "netdp_icmp_errors_translated_total" Counter [] 1 Maps
        "ICMP errors translated in either direction; they are in no outcome.";
    FRAGMENTS "netdp_fragments_held_total" Counter [] 1 Maps
        "Fragments queued until the first one of their datagram arrived; they are in no outcome.";
    MAPPINGS "netdp_mappings" Gauge ["protocol", "state"] 8 Sweep
        "Live mappings, by protocol and by whether the peer has sent a packet.";
    MAPPINGS_MAX "netdp_mappings_max" Gauge [] 1 Sweep
        "Capacity of the mapping tables.";
    CREATED "netdp_mappings_created_total" Counter ["protocol"] 4 Maps
        "Mappings created, by protocol.";
    ENDED "netdp_mappings_ended_total" Counter ["why"] 5 Sweep
        "Mappings ended by the sweep, and halves that it restored (repair).";
    ALLOCATIONS "netdp_port_allocations_total" Counter ["result"] 3 Maps
        "Mappings that kept their source port, that changed it, and packets refused for want of a port.";
    SEARCH "netdp_port_search_candidates" Histogram [] 1 Maps
        "Candidates that were tried for a mapping's port: 1 where the first was free.";
    RATIO "netdp_destination_ports_used_ratio" Gauge ["family", "protocol"] 4 Sweep
        "Share of the ports in use towards the destination with most, from 0 to 1.";
    RATIO_MAX "netdp_destination_ports_used_ratio_max" Gauge ["family", "protocol"] 4 Sweep
        "The highest such share that a pass of the sweep has found in the last five minutes, before it ended mappings.";
    PORTS_USED "netdp_destination_ports_used" Gauge ["protocol", "address", "destination", "port"] MOST_TOP Sweep
        "Ports in use towards the destinations with most (--metrics-top), of those with more than a sixteenth.";
    PORTS_USED_MAX "netdp_destination_ports_used_max" Gauge ["protocol", "address", "destination", "port"] MOST_TOP Sweep
        "The most that a pass of the sweep has found in the last five minutes, of the destinations with most then.";
    PORTS "netdp_destination_ports" Gauge ["protocol", "address", "destination", "port"] (2 * MOST_TOP) Sweep
        "Ports, used or free, towards the destinations of netdp_destination_ports_used and netdp_destination_ports_used_max.";
    NS_MAPPINGS "netdp_namespace_mappings" Gauge ["namespace"] (NAMESPACES + 2) Sweep
        "Live mappings of a namespace's pods.";
    NS_CREATED "netdp_namespace_mappings_created_total" Counter ["namespace"] (NAMESPACES + 2) Sweep
        "Mappings of a namespace's pods that a pass of the sweep has found new.";
    NS_SENT "netdp_namespace_transmit_bytes_total" Counter ["namespace"] (NAMESPACES + 2) Sweep
        "Bytes that a namespace's pods have sent over mappings.";
    NS_RECEIVED "netdp_namespace_receive_bytes_total" Counter ["namespace"] (NAMESPACES + 2) Sweep
        "Bytes that were sent to a namespace's pods over mappings.";
    NS_REFUSED "netdp_namespace_refused_total" Counter ["namespace"] (NAMESPACES + 2) Sweep
        "Packets of new flows of a namespace's pods that were refused.";
    POD_MAPPINGS "netdp_pod_mappings" Gauge ["namespace", "pod"] (PODS + 2) Sweep
        "Live mappings of a pod (--metrics-pods pod).";
    POD_CREATED "netdp_pod_mappings_created_total" Counter ["namespace", "pod"] (PODS + 2) Sweep
        "Mappings of a pod that a pass of the sweep has found new.";
    POD_SENT "netdp_pod_transmit_bytes_total" Counter ["namespace", "pod"] (PODS + 2) Sweep
        "Bytes that a pod has sent over mappings.";
    POD_RECEIVED "netdp_pod_receive_bytes_total" Counter ["namespace", "pod"] (PODS + 2) Sweep
        "Bytes that were sent to a pod over mappings.";
    POD_REFUSED "netdp_pod_refused_total" Counter ["namespace", "pod"] (PODS + 2) Sweep
        "Packets of a pod's new flows that were refused.";
    ENTRIES "netdp_table_entries" Gauge ["table"] 6 Sweep
        "Entries in the datapath's tables.";
    MAX_ENTRIES "netdp_table_max_entries" Gauge ["table"] 6 Sweep
        "Capacity of these tables.";
    CONFIG_INFO "netdp_config_info" Info ["hash", "source"] 1 Agent
        "Hash of the policy in force, and the source of its configuration.";
    GENERATION "netdp_config_generation" Gauge [] 1 Agent
        "Number of policies that have been in force on this node, including this one.";
    APPLIED "netdp_config_applied_timestamp_seconds" Gauge [] 1 Agent
        "Time at which the policy came into force.";
    RULES "netdp_config_rules" Gauge ["action"] 2 Agent
        "Rules of the policy.";
    WARNINGS "netdp_config_warnings" Gauge [] 1 Agent
        "Warnings about the configuration.";
    RELOADED "netdp_config_last_reload_successful" Gauge [] 1 Agent
        "1 if the current configuration was accepted, 0 if it was rejected.";
    RELOADED_AT "netdp_config_last_reload_timestamp_seconds" Gauge [] 1 Agent
        "Time at which a configuration was last accepted or rejected.";
    APPLY "netdp_config_apply_duration_seconds" Histogram [] 1 Agent
        "Time that it took to write a changed configuration to the datapath.";
    BUILD "netdp_build_info" Info ["version", "revision", "mode", "kernel"] 1 Agent
        "Version, revision of the sources and mode of the agent, and release of the kernel.";
    UPLINK_INFO "netdp_uplink_info" Info ["uplink", "attached", "ipv4", "ipv6"] INTERFACES Agent
        "Uplinks with attached programs, and the addresses that they masquerade with.";
    UPLINK_UP "netdp_uplink_up" Gauge ["uplink"] INTERFACES Agent
        "1 if the uplink's link is up.";
    SELF_CHECK "netdp_self_check_successful" Gauge ["uplink"] INTERFACES Agent
        "1 if the last self-check found that the uplink's programs do what the policy says.";
    SELF_CHECK_AT "netdp_self_check_timestamp_seconds" Gauge [] 1 Agent
        "Time of the last self-check.";
    READY "netdp_ready" Gauge [] 1 Agent
        "1 if the node is ready, as /readyz answers.";
    FINDINGS "netdp_findings" Gauge ["code", "severity"] 10 Agent
        "Findings of the agent, by code.";
    FOREIGN "netdp_foreign_nat_rules" Gauge ["verdict"] 2 Agent
        "NAT rules of other programs that contradict the configuration, and those that do not.";
    SWEEP "netdp_sweep_duration_seconds" Histogram ["kind"] 2 Sweep
        "Time that a sweep took, with a full pass or without.";
    SWEEP_CPU "netdp_sweep_cpu_seconds_total" Counter [] 1 Sweep
        "CPU time of the sweep's thread.";
    API "netdp_api_followed" Gauge [] 1 Agent
        "1 if the agent follows the Kubernetes API.";
    API_HEARD "netdp_api_last_heard_timestamp_seconds" Gauge [] 1 Agent
        "Time of the API's last answer about what is followed, or of the agent's start before the first; only where it is followed.";
    EVENTS "netdp_events_total" Counter ["kind"] 7 Maps
        "Events while netdp monitor listened to their kind; end, config, finding and agent begin with the agent's process.";
    EVENTS_LOST "netdp_events_lost_total" Counter ["kind", "cause"] 21 Maps
        "Events that were not shown: over the rate (limited), no room (full), a listener that did not read (reader).";
    NAT_LOG_RECORDS "netdp_nat_log_records_total" Counter ["event"] 7 Agent
        "Records of the NAT log that were written, by event; only where it is on.";
    NAT_LOG_LOST "netdp_nat_log_lost_total" Counter ["cause"] 5 Agent
        "Begins and ends that are in no record: more than can be written (queue), a full disk (disk), a collector that is away (collector), no room for programs to report (programs), a sweep that failed (sweep).";
    NAT_LOG_LAG "netdp_nat_log_lag_seconds" Gauge [] 1 Agent
        "Age of the oldest event that is not written yet.";
    CPU "process_cpu_seconds_total" Counter [] 1 Process
        "CPU time of the agent.";
    RESIDENT "process_resident_memory_bytes" Gauge [] 1 Process
        "Resident memory of the agent.";
    VIRTUAL "process_virtual_memory_bytes" Gauge [] 1 Process
        "Virtual memory of the agent.";
    OPEN_FDS "process_open_fds" Gauge [] 1 Process
        "Open file descriptors of the agent.";
    MAX_FDS "process_max_fds" Gauge [] 1 Process
        "Limit of its open file descriptors.";
    STARTED "process_start_time_seconds" Gauge [] 1 Process
        "Time at which the agent started.";
}

#[cfg(test)]
mod tests {
    use super::{ALL, Kind};
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::path::Path;

    const BEGIN: &str = "<!-- generated: begin -->\n";
    const END: &str = "<!-- generated: end -->\n";

    fn generated() -> String {
        let mut text = "\n| metric | type | labels | most series | read | meaning |\n\
                        |---|---|---|---|---|---|\n"
            .to_owned();
        for metric in ALL {
            let labels = match metric.labels {
                [] => "–".to_owned(),
                labels => labels.join(", "),
            };
            let (name, kind, most) = (metric.name, metric.kind, metric.most);
            let (read, help) = (metric.read, metric.help);
            writeln!(
                text,
                "| `{name}` | {kind} | {labels} | {most} | {read} | {help} |"
            )
            .unwrap();
        }
        text.push('\n');
        text
    }

    #[test]
    fn the_document_has_this_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let document = std::fs::read_to_string(&path).unwrap();
        let (head, rest) = document.split_once(BEGIN).unwrap();
        let (table, foot) = rest.split_once(END).unwrap();
        if std::env::var_os("NETDP_REWRITE_DOCS").is_some() {
            let text = [head, BEGIN, &generated(), END, foot].concat();
            std::fs::write(&path, text).unwrap();
        } else {
            assert_eq!(table, generated(), "NETDP_REWRITE_DOCS=1 rewrites it");
        }
    }

    #[test]
    fn names_follow_the_conventions() {
        let mut names = BTreeSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("netdp_") || name.starts_with("process_"));
            let suffix = match metric.kind {
                Kind::Counter => "_total",
                Kind::Info => "_info",
                Kind::Histogram if name.ends_with("_candidates") => "",
                Kind::Histogram => "_seconds",
                Kind::Gauge => "",
            };
            assert!(name.ends_with(suffix), "{name}");
            let is_other = metric.kind == Kind::Gauge || metric.kind == Kind::Histogram;
            assert!(!is_other || !name.ends_with("_total") && !name.ends_with("_info"));
            assert!(metric.help.ends_with('.'), "{name}");
        }
    }
}
