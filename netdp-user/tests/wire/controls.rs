//! The cases run against other translators.

use super::bed::{NotApplicable, Subject};
use super::driver::Wire;
use super::{CASES, finish};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Cases that netdp does not pass yet. Their lines are "no" in the document.
pub const NOT_YET: &[&str] = &[];

/// Cases that advance netdp's clock or need a feature of its datapath alone.
pub const DATAPATH_ONLY: &[&str] = &[
    "r2_3_hashed_ports_are_repeatable",
    "r3_1_udp",
    "r3_2_tcp_established",
    "r3_3_tcp_on_its_way",
    "r3_3_a_half_closed_download_goes_on",
    "r3_4_icmp_and_others",
    "r3_5_outbound_packets_refresh",
    "r3_8_a_guessed_rst_does_not_shorten_a_flow",
    "r3_11_timeouts_are_settings",
    "r9_7_one_translation_where_the_lower_has_addresses",
];

/// The case that needs an agent.
const AGENT_ONLY: &str = "r9_2_flows_outlive_the_agent";

/// Cases whose result is random for a control: a random port may be in the reserved range,
/// netfilter may lose a packet of a race, and on a busy machine it has lost a SYN to the node's
/// listener.
pub const CHANCE: &[&str] = &[
    "r2_1_two_pods_at_the_same_moment",
    "r2_1b_two_first_packets_of_one_flow",
    "r2_5_reserved_ports_are_not_given_away",
    "r2_11_a_listener_still_gets_new_connections",
];

/// Cases that pass without any translation: those about packets that are not translated.
const LEFT_ALONE: &[&str] = &[
    "r1_2_non_masquerade_cidrs_see_the_pod",
    "r1_3_the_nodes_own_addresses_see_the_pod",
    "r1_4_replies_of_inbound_flows_keep_the_pods_address",
    "r1_4_node_port_replies_pass",
    "r1_6_multicast_and_link_local_are_left_alone",
    "r1_8_pods_of_one_node_see_each_other",
    "r9_10_the_nodes_own_flows_are_untouched",
];

/// Known failures of netfilter with either set of rules.
const NETFILTER_FAILS: &[&str] = &[
    "r1_5_a_stray_packet_does_not_make_a_syn_a_reply",
    "r1_10_the_routes_preferred_source_is_used",
    "r2_8_the_pod_is_told_that_ports_are_used_up",
    "r2_9_unsolicited_packets_do_not_move_a_port",
    "r2_13_pods_that_ask_for_each_other_meet",
    "r2_13_a_pod_learns_that_the_other_refuses",
    "r4_1_segments_without_a_connection_do_not_leak",
    "r4_1_bad_checksums_do_not_leak",
    "r4_1_malformed_packets_do_not_leak",
    "r4_1_out_of_window_segments_do_not_leak",
    "r4_2_out_of_window_data_comes_in",
    "r4_5_bad_checksums_stay_bad",
    "r5_7_sctp_ports_never_change",
    "r5_8_vlan_tags_in_band",
    "r5_8_vlan_tags_taken_off",
    "r5_8_no_ethernet_header",
    "r5_8_a_refusal_without_ethernet_header",
    "r5_9_unknown_headers_do_not_leak",
    "r6_1_timestamp_queries",
    "r6_2_quench_and_redirect_do_not",
    "r6_4_errors_about_nothing_do_not_leak",
    "r7_4_lone_fragments_do_not_use_up_the_room",
    "r7_5_tiny_and_overlapping_fragments_do_not_leak",
    "r8_1_udp_lite",
    "r8_1_udp_lite_with_partial_coverage",
    "r8_1_dccp",
    "r8_1_udp_lite_of_two_pods",
    "r9_5_flows_survive_a_conntrack_flush",
];

/// Additional failures with the nft rules.
const NFT_FAILS: &[&str] = &[
    "r2_1_two_pods_at_the_same_moment",
    "r2_3_random_ports_on_demand",
    "r2_3_hashed_ports_are_repeatable",
    "r2_5_reserved_ports_are_not_given_away",
];

/// Additional failures with ip-masq-agent's rules.
const IP_MASQ_AGENT_FAILS: &[&str] = &[
    "r1_6_multicast_and_link_local_are_left_alone",
    "r1_7_tunnel_packets_are_not_translated_again",
    "r2_1b_two_first_packets_of_one_flow",
    "r2_2_one_port_for_all_destinations",
    "r2_3_a_free_port_is_kept",
    "r2_10_the_nodes_socket_first",
    "r4_3_a_connection_in_mid_stream_is_picked_up",
    "r9_5_flows_survive_a_link_flap",
    "r9_10_the_nodes_own_flows_are_untouched",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    Pass,
    Fail,
    /// It needs a feature of netdp alone.
    Void,
}

pub type Scores = BTreeMap<(usize, usize), (Score, String)>;

/// Runs every case against every subject, a few in parallel.
pub fn scores(subjects: &[Subject]) -> Scores {
    let next = AtomicUsize::new(0);
    let scores = Mutex::new(Scores::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let (case, subject) = (n / subjects.len(), n % subjects.len());
                    let Some(found) = CASES.get(case) else { break };
                    let bed = Wire::new(subjects[subject], &found.options)
                        .unwrap_or_else(|error| panic!("a bed for {subjects:?}: {error:#}"));
                    let score = match finish(found, bed) {
                        Ok(()) => (Score::Pass, String::new()),
                        Err(error) if error.is::<NotApplicable>() => (Score::Void, String::new()),
                        Err(error) => (Score::Fail, format!("{error:#}")),
                    };
                    if let Ok(mut scores) = scores.lock() {
                        scores.insert((case, subject), score);
                    }
                }
            });
        }
    });
    scores.into_inner().unwrap_or_default()
}

/// Checks the scores of all controls; see the test that calls it.
pub fn run() {
    let wants_table = std::env::var_os("NETDP_WIRE_TABLE").is_some();
    let mut subjects = vec![Subject::Nft, Subject::IpMasqAgent, Subject::Nobody];
    if wants_table {
        subjects.insert(0, Subject::Netdp);
        subjects.insert(1, Subject::NetdpIptables);
    }
    let scores = scores(&subjects);
    if wants_table {
        println!("{}", table(&subjects, &scores));
    }
    let mut wrong = String::new();
    for (&(case, subject), (score, why)) in &scores {
        let (name, subject) = (CASES[case].name, subjects[subject]);
        let wanted = if expected_to_pass(subject, name) {
            Score::Pass
        } else {
            Score::Fail
        };
        if subject == Subject::NetdpIptables {
            // It has a test of its own.
            continue;
        }
        let control = subject != Subject::Netdp;
        let of_netdp = name == AGENT_ONLY || DATAPATH_ONLY.contains(&name);
        let as_wanted = if control && of_netdp {
            *score != Score::Pass
        } else {
            *score == wanted || control && CHANCE.contains(&name)
        };
        if !as_wanted {
            let _ = writeln!(
                wrong,
                "{subject:?} {name}: {score:?}, not {wanted:?}: {why}"
            );
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{wrong}");
}

fn expected_to_pass(subject: Subject, name: &str) -> bool {
    match subject {
        Subject::Netdp => !NOT_YET.contains(&name),
        Subject::Nobody => LEFT_ALONE.contains(&name),
        Subject::Nft => ![NETFILTER_FAILS, NFT_FAILS].concat().contains(&name),
        _ => ![NETFILTER_FAILS, IP_MASQ_AGENT_FAILS]
            .concat()
            .contains(&name),
    }
}

fn table(subjects: &[Subject], scores: &Scores) -> String {
    let mut text = String::new();
    let mut sums = vec![(0, 0); subjects.len()];
    for (case, found) in CASES.iter().enumerate() {
        let _ = write!(text, "{:<58}", found.name);
        for (subject, (passed, of)) in sums.iter_mut().enumerate() {
            let score = scores.get(&(case, subject)).map_or(Score::Fail, |s| s.0);
            *passed += usize::from(score == Score::Pass);
            *of += usize::from(score != Score::Void);
            let word = match score {
                Score::Pass => "yes",
                Score::Fail => "NO",
                Score::Void => "-",
            };
            let _ = write!(text, " {word:>12}");
        }
        text.push('\n');
    }
    let mut head = format!("{:<58}", "");
    for subject in subjects {
        let _ = write!(head, " {:>12}", format!("{subject:?}"));
    }
    let _ = write!(text, "{:<58}", "cases passed");
    for (passed, of) in sums {
        let _ = write!(text, " {:>12}", format!("{passed}/{of}"));
    }
    format!("{head}\n{text}")
}
