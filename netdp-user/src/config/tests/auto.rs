//! `autoNonMasquerade`.

use super::*;

const POD: AutoKind = AutoKind::Pods;
const SERVICE: AutoKind = AutoKind::Services;
const NODE: AutoKind = AutoKind::Nodes;

/// Returns networks that an API has returned; those of pods and nodes of the nodes `n0`, `n1`, …
fn received(kind: AutoKind, prefixes: &[&str]) -> Arc<[AutoNetwork]> {
    let network = |(index, prefix): (usize, &&str)| AutoNetwork {
        kind,
        prefix: prefix.parse().unwrap(),
        source: match kind {
            AutoKind::Services => AutoSource::Service,
            AutoKind::Pods | AutoKind::Nodes => AutoSource::Node(format!("n{index}")),
        },
    };
    prefixes.iter().enumerate().map(network).collect()
}

fn with_pods(prefixes: &[&str]) -> ClusterCidrs {
    ClusterCidrs {
        auto: AutoNetworks {
            of_nodes: Some(received(POD, prefixes)),
            of_services: Some(received(SERVICE, &[])),
            api: AutoApi::Followed,
            ..AutoNetworks::default()
        },
        ..ClusterCidrs::default()
    }
}

fn with_flags(pods: &[&str], services: &[&str]) -> ClusterCidrs {
    let nets = |texts: &[&str]| -> Vec<IpNet> {
        let nets = texts.iter().map(|text| text.parse().unwrap());
        nets.collect()
    };
    let (pod_cidrs, service_cidrs) = (nets(pods), nets(services));
    ClusterCidrs {
        auto: AutoNetworks::of_flags(&pod_cidrs, &service_cidrs),
        pod_cidrs,
        service_cidrs,
    }
}

#[track_caller]
fn load_in(text: &str, options: &Options, cluster: &ClusterCidrs) -> Loaded {
    load_for_cluster(&[doc("c.yaml", text)], options, cluster)
        .unwrap_or_else(|rejected| panic!("{text:?} was rejected: {rejected}"))
}

/// Returns the rules of the cluster's networks, as prefix and origin.
fn auto(loaded: &Loaded) -> Vec<String> {
    let rules = loaded.config.rules.iter().filter(|rule| rule.is_auto());
    rules
        .map(|rule| format!("{} {} {}", rule.prefix, rule.action, rule.origin))
        .collect()
}

#[test]
fn each_kind_has_its_source_and_its_origin() {
    let mut cluster = with_pods(&["100.64.0.0/24", "100.64.9.0/24"]);
    cluster.auto.of_services = Some(received(SERVICE, &["198.18.0.0/16"]));
    let of_nodes = cluster.auto.of_nodes.iter().flat_map(|nets| nets.iter());
    let addresses = received(NODE, &["192.0.2.1/32"]);
    cluster.auto.of_nodes = Some(of_nodes.chain(addresses.iter()).cloned().collect());
    let of = |text: &str| auto(&load_in(text, &V4, &cluster));
    let pods = [
        "100.64.0.0/24 bypass auto: pods (node n0)",
        "100.64.9.0/24 bypass auto: pods (node n1)",
    ];
    assert_eq!(of("autoNonMasquerade: [pods]"), pods);
    assert_eq!(
        of("autoNonMasquerade: [services]"),
        ["198.18.0.0/16 bypass auto: services"]
    );
    assert_eq!(
        of("autoNonMasquerade: [nodes]"),
        ["192.0.2.1/32 bypass auto: nodes (node n0)"]
    );
    for none in [
        "",
        "autoNonMasquerade: []",
        "autoNonMasquerade:",
        "masqLinkLocal: true",
    ] {
        assert_eq!(of(none), [""; 0], "{none:?}");
    }
    let flags = with_flags(&["100.64.0.0/10"], &["198.18.0.0/15"]);
    assert_eq!(
        auto(&load_in("autoNonMasquerade: [services, pods]", &V4, &flags)),
        [
            "100.64.0.0/10 bypass auto: pods (--pod-cidr)",
            "198.18.0.0/15 bypass auto: services (--service-cidr)",
        ]
    );
}

#[test]
fn several_files_are_united() {
    let cluster = with_flags(&["100.64.0.0/10"], &["198.18.0.0/15"]);
    let docs = [
        doc("a", "autoNonMasquerade: [pods]"),
        doc("b", "autoNonMasquerade: [services, pods]"),
        doc("c", "resyncInterval: 5s"),
    ];
    let loaded = load_for_cluster(&docs, &V4, &cluster).unwrap();
    assert_eq!(auto(&loaded).len(), 2);
    assert_eq!(loaded.config.auto, [POD, SERVICE].into());
    assert_eq!(lines(&loaded.warnings), [""; 0]);
}

#[test]
fn unknown_words_are_errors_that_name_the_known_ones() {
    let errors = |text: &str| lines(&load_one(text, &V4).unwrap_err().errors);
    assert_eq!(
        errors("autoNonMasquerade:\n- pods\n- pod\n- 7\n- [x]\n"),
        [
            "c.yaml:3: autoNonMasquerade[1]: \"pod\" is unknown; the known words are pods, \
             services, nodes",
            "c.yaml:4: autoNonMasquerade[2]: \"7\" is unknown; the known words are pods, services, \
             nodes",
            "c.yaml:5: autoNonMasquerade[3]: expected a word, found a list",
        ]
    );
    assert_eq!(
        errors("autoNonMasquerade: pods"),
        [
            "c.yaml:1: autoNonMasquerade: expected a list such as [pods, services], found the \
             string \"pods\""
        ]
    );
    let loaded = load_in(
        "autoNonMasquerade: [pods, pods]",
        &V4,
        &with_pods(&["100.64.0.0/24"]),
    );
    assert_eq!(
        lines(&loaded.warnings),
        ["c.yaml:1: autoNonMasquerade[1]: pods is already listed"]
    );
}

#[test]
fn neighbours_are_united_and_what_is_inside_is_omitted() {
    let of = |prefixes: &[&str]| {
        let cluster = with_pods(prefixes);
        auto(&load_in("autoNonMasquerade: [pods]", &V6, &cluster))
    };
    assert_eq!(
        of(&[
            "100.64.3.0/24",
            "100.64.1.0/24",
            "100.64.0.0/24",
            "100.64.2.0/24",
            "100.64.2.128/25",
            "100.64.4.0/24",
        ]),
        [
            "100.64.0.0/22 bypass auto: pods (node n2 and 4 more)",
            "100.64.4.0/24 bypass auto: pods (node n5)",
        ]
    );
    // Not halves of one prefix.
    assert_eq!(of(&["100.64.1.0/24", "100.64.2.0/24"]).len(), 2);
    assert_eq!(of(&["0.0.0.0/0", "128.0.0.0/1"]).len(), 1);
    assert_eq!(
        of(&["fd00::/64", "fd00:0:0:1::/64", "100.64.0.0/24"]),
        [
            "100.64.0.0/24 bypass auto: pods (node n2)",
            "fd00::/63 bypass auto: pods (node n0 and 1 more)",
        ]
    );
    // The flag names what a node has anyway.
    let mut cluster = with_pods(&["100.64.0.0/24"]);
    cluster.auto.flags = with_flags(&["100.64.0.0/24"], &[]).auto.flags;
    assert_eq!(
        auto(&load_in("autoNonMasquerade: [pods]", &V4, &cluster)),
        ["100.64.0.0/24 bypass auto: pods (node n0)"]
    );
}

#[test]
fn whatever_is_written_has_precedence_however_many_nodes_there_are() {
    let nodes = [
        "100.64.0.0/24",
        "100.64.1.0/24",
        "100.64.2.0/24",
        "100.64.3.0/24",
    ];
    let text = |list: &str| format!("autoNonMasquerade: [pods]\nmasqueradeCIDRs: [{list}]\n");
    let decided = |text: &str, nodes: &[&str], address: &str| {
        let loaded = load_in(text, &V4, &with_pods(nodes));
        let mut prefixes: Vec<_> = loaded.config.rules.iter().map(|rule| rule.prefix).collect();
        prefixes.sort_unstable();
        assert!(
            prefixes.windows(2).all(|two| two[0] != two[1]),
            "{prefixes:?}"
        );
        loaded.config.decide(address.parse().unwrap()).action
    };
    for count in 1..=4 {
        let nodes = &nodes[..count];
        // Of the same length.
        let same = text("100.64.0.0/24");
        assert_eq!(decided(&same, nodes, "100.64.0.1"), RuleAction::Masquerade);
        // Longer.
        let longer = text("100.64.0.128/25");
        assert_eq!(decided(&longer, nodes, "100.64.0.1"), RuleAction::Bypass);
        assert_eq!(
            decided(&longer, nodes, "100.64.0.200"),
            RuleAction::Masquerade
        );
        // Shorter: equal to what the nodes' networks make up together once there are four.
        let shorter = text("100.64.0.0/22");
        assert_eq!(decided(&shorter, nodes, "100.64.0.1"), RuleAction::Bypass);
    }
    // Between two of the cluster's networks.
    let between = text("100.64.0.0/20");
    let nested = ["100.64.0.0/16", "100.64.1.0/24"];
    assert_eq!(decided(&between, &nested, "100.64.1.1"), RuleAction::Bypass);
    assert_eq!(
        decided(&between, &nested, "100.64.2.1"),
        RuleAction::Masquerade
    );
    assert_eq!(
        decided(&between, &nested, "100.64.99.1"),
        RuleAction::Bypass
    );
    // Equal to the outer one.
    let outer = text("100.64.0.0/16");
    assert_eq!(decided(&outer, &nested, "100.64.1.1"), RuleAction::Bypass);
    assert_eq!(
        decided(&outer, &nested, "100.64.2.1"),
        RuleAction::Masquerade
    );
}

#[test]
fn nat_rules_have_precedence() {
    let docs = [
        doc("c.yaml", "autoNonMasquerade: [pods]"),
        doc("nat.rules", "100.64.0.0/16"),
    ];
    let cluster = with_pods(&["100.64.1.0/24", "100.65.1.0/24"]);
    let loaded = load_for_cluster(&docs, &V4, &cluster).unwrap();
    assert_eq!(auto(&loaded), ["100.65.1.0/24 bypass auto: pods (node n1)"]);
    assert_eq!(lines(&loaded.warnings), [""; 0]);
}

#[test]
fn they_count_besides_the_default_list_and_an_empty_one() {
    let cluster = with_pods(&["100.64.1.0/24"]);
    let loaded = load_in("autoNonMasquerade: [pods]", &V4, &cluster);
    assert_eq!(bypasses(&loaded.config)[..3], RFC1918);
    let empty = "nonMasqueradeCIDRs: []\nautoNonMasquerade: [pods]\n";
    let loaded = load_in(empty, &V4, &cluster);
    assert_eq!(bypasses(&loaded.config), ["100.64.1.0/24"]);
    assert_eq!(lines(&loaded.warnings), [""; 0]);
    let differs = lines(&differences(&[doc("c.yaml", empty)]));
    assert!(
        matches!(&differs[..], [line] if line.contains("c.yaml:2: ip-masq-agent ignores autoNonMasquerade")),
        "{differs:?}"
    );
    let none = "autoNonMasquerade: []\n";
    assert_eq!(differences(&[doc("c.yaml", none)]), []);
}

#[test]
fn with_bypass_as_the_default_action_they_have_no_effect() {
    let options = Options {
        default_action: Some(RuleAction::Bypass),
        ..V4
    };
    let text = "autoNonMasquerade: [pods]\nmasqueradeCIDRs: [100.64.0.0/16]\n";
    let loaded = load_in(text, &options, &with_pods(&["100.64.1.0/24"]));
    assert_eq!(auto(&loaded), [""; 0]);
    assert_eq!(
        lines(&loaded.warnings),
        ["c.yaml:1: autoNonMasquerade: pods has no effect, because --default-action is bypass"]
    );
}

#[test]
fn ipv6_counts_where_it_is_on() {
    let cluster = with_pods(&["100.64.1.0/24", "fd00::/64"]);
    for (options, count) in [(V4, 1), (V6, 2)] {
        let loaded = load_in("autoNonMasquerade: [pods]", &options, &cluster);
        assert_eq!(auto(&loaded).len(), count);
    }
}

#[test]
fn of_the_networks_only_the_kinds_are_in_the_hash() {
    let hash = |text: &str, nets: &[&str]| load_in(text, &V4, &with_pods(nets)).config.hash();
    let pods = "autoNonMasquerade: [pods]";
    let some = hash(pods, &["100.64.1.0/24"]);
    assert_eq!(some, hash(pods, &["100.64.1.0/24", "100.64.7.0/24"]));
    assert_eq!(some, hash(pods, &[]));
    let other = hash("autoNonMasquerade: [pods, services]", &["100.64.1.0/24"]);
    assert_ne!(some, other);
    assert_ne!(
        some,
        hash("autoNonMasquerade: [services]", &["100.64.1.0/24"])
    );
    assert_ne!(some, hash("", &["100.64.1.0/24"]));
    assert_eq!(hash("", &[]), hash("autoNonMasquerade: []", &[]));
}

#[test]
fn what_cannot_be_known_is_reported() {
    let of = |api: AutoApi, text: &str| {
        let cluster = ClusterCidrs {
            auto: AutoNetworks {
                api,
                ..AutoNetworks::default()
            },
            ..ClusterCidrs::default()
        };
        let loaded = load_in(text, &V4, &cluster);
        (lines(&loaded.warnings), lines(&loaded.notes))
    };
    let all = "autoNonMasquerade: [pods, services, nodes]";
    let (warnings, notes) = of(AutoApi::Offline, all);
    assert_eq!((warnings.len(), notes.len()), (0, 3), "{warnings:?}");
    assert!(notes[0].ends_with("not shown here; --pod-cidr names them"));
    assert!(notes[2].ends_with("not shown here"), "{notes:?}");
    let (warnings, notes) = of(AutoApi::NotFollowed, all);
    assert_eq!((warnings.len(), notes.len()), (3, 0), "{warnings:?}");
    assert!(warnings[0].contains("(--kube); --pod-cidr names them"));
    let (warnings, notes) = of(AutoApi::WithoutServices, all);
    assert_eq!((warnings.len(), notes.len()), (1, 0), "{warnings:?}");
    assert!(warnings[0].contains("ServiceCIDRs"), "{warnings:?}");
    assert_eq!(of(AutoApi::Followed, all), (vec![], vec![]));
    // Flags suffice.
    let loaded = load_in(
        "autoNonMasquerade: [pods]",
        &V4,
        &with_flags(&["100.64.0.0/10"], &[]),
    );
    assert_eq!((loaded.warnings, loaded.notes), (vec![], vec![]));
}

#[test]
fn the_key_is_recommended_where_pods_are_masqueraded() {
    let cluster = with_flags(&["100.64.0.0/10"], &[]);
    let warnings = lines(&load_in("", &V4, &cluster).warnings);
    assert!(
        matches!(&warnings[..], [line] if line.ends_with("or set autoNonMasquerade: [pods] NDP204")),
        "{warnings:?}"
    );
}

#[test]
fn rules_inside_the_clusters_networks_are_not_called_useless() {
    let cluster = with_pods(&["100.64.0.0/16"]);
    let text = "nonMasqueradeCIDRs: [100.64.3.0/24]\nmasqueradeCIDRs: [100.64.4.0/24]\n\
                autoNonMasquerade: [pods]\n";
    assert_eq!(lines(&load_in(text, &V4, &cluster).warnings), [""; 0]);
}

#[test]
fn many_prefixes_are_reported_once_and_in_force() {
    let prefix = |index: usize| format!("100.{}.{}.0/24", 64 + index / 128, index % 128 * 2);
    let prefixes: Vec<String> = (0..1_001).map(prefix).collect();
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    let loaded = load_in("autoNonMasquerade: [pods]", &V4, &with_pods(&prefixes));
    assert_eq!(auto(&loaded).len(), 1_001);
    let warnings = lines(&loaded.warnings);
    assert!(
        matches!(&warnings[..], [line] if line.contains("more than 1000 prefixes")),
        "{warnings:?}"
    );
    let loaded = load_in("autoNonMasquerade: [pods]", &V4, &with_pods(&prefixes[1..]));
    assert_eq!(lines(&loaded.warnings), [""; 0]);
}

#[test]
fn pods_are_not_called_masqueraded_before_the_api_has_named_them() {
    let mut cluster = with_flags(&["100.64.0.0/24"], &[]);
    cluster.auto = AutoNetworks {
        api: AutoApi::Followed,
        ..AutoNetworks::default()
    };
    let text = "autoNonMasquerade: [pods]";
    assert_eq!(lines(&load_in(text, &V4, &cluster).warnings), [""; 0]);
    assert_eq!(load_in("", &V4, &cluster).warnings.len(), 1);
    cluster.auto.of_nodes = Some(received(POD, &["100.65.0.0/24"]));
    assert_eq!(load_in(text, &V4, &cluster).warnings.len(), 1);
}

#[test]
fn what_was_saved_counts_as_received() {
    let mut networks = AutoNetworks::default();
    let saved = [
        received(POD, &["100.64.0.0/24"]),
        received(SERVICE, &["198.18.0.0/16"]),
    ];
    networks.api = AutoApi::Followed;
    assert!(networks.awaits(POD) && networks.awaits(NODE) && networks.awaits(SERVICE));
    networks.add_saved(saved[0].to_vec());
    assert!(!networks.awaits(POD) && networks.awaits(SERVICE));
    networks.add_saved(saved.concat());
    assert!(!networks.awaits(POD) && !networks.awaits(SERVICE));
    assert_eq!(networks.iter().count(), 2);
}
