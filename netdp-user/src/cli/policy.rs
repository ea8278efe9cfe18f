//! The flags that affect the meaning of a configuration, and those about the cluster's networks:
//! the same for `netdp run` and `netdp config check`.

use super::go_flags::parse_bool;
use crate::config::{AutoNetworks, ClusterCidrs, Document, Format, Options, RuleAction};
use clap::Args;
use ipnet::IpNet;

#[derive(Debug, Args)]
pub(super) struct Policy {
    /// Masquerade IPv6 too, and accept IPv6 CIDRs.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set,
          value_parser = parse_bool)]
    pub enable_ipv6: bool,
    /// Add the reserved IPv4 ranges to the default non-masquerade CIDRs.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set,
          value_parser = parse_bool)]
    pub nomasq_all_reserved_ranges: bool,
    /// Action for destinations that no list covers. With bypass, only listed destinations are
    /// masqueraded, as by k8s-custom-iptables. Without it, masquerade.
    #[arg(long, value_enum, value_name = "ACTION")]
    default_action: Option<RuleAction>,
    /// Networks to masquerade besides those of the configuration, separated by blanks or commas, in
    /// the format of a nat.rules file.
    #[arg(long, value_name = "CIDRS", env = "TARGETS")]
    targets: Option<String>,
    /// Network of the pods' addresses; netdp warns if it would be masqueraded, and counts it among
    /// the `pods` of autoNonMasquerade. May be repeated.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pod_cidr: Vec<IpNet>,
    /// Network of the services' addresses; netdp warns if it would be masqueraded, and counts it
    /// among the `services` of autoNonMasquerade. May be repeated.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    service_cidr: Vec<IpNet>,
}

impl Policy {
    pub(crate) fn options(&self) -> Options {
        Options {
            enable_ipv6: self.enable_ipv6,
            nomasq_all_reserved_ranges: self.nomasq_all_reserved_ranges,
            default_action: self.default_action,
        }
    }

    pub(crate) fn cluster_cidrs(&self) -> ClusterCidrs {
        let network = |nets: &[IpNet]| nets.iter().map(IpNet::trunc).collect();
        ClusterCidrs {
            pod_cidrs: network(&self.pod_cidr),
            service_cidrs: network(&self.service_cidr),
            auto: AutoNetworks::of_flags(&self.pod_cidr, &self.service_cidr),
        }
    }

    /// Returns the document that `--targets` stands for.
    pub(crate) fn targets(&self) -> Option<Document> {
        self.targets.as_ref().map(|text| Document {
            name: "--targets".to_owned(),
            text: text.clone(),
            format: Format::NatRules,
        })
    }
}
