//! netdp on a wire: raw packets on both sides of a node, one case per line of the requirements
//! (docs/nat-behaviour.md lists them). The same cases run against other translators, which proves
//! that each can fail.
#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "all of this is test code, functions that tests call included"
)]

mod bed;
mod build;
mod cases;
mod checksum;
mod clock;
mod controls;
mod driver;
mod flow;
mod iptables_mode;
mod lever;
mod octets;
mod packet;
mod requirements;
mod socket;
mod subject;

use anyhow::Result;
use bed::{Medium, Options, Subject};
use driver::Wire;

/// A case: its function, and the bed that it needs.
struct Case {
    name: &'static str,
    options: Options,
    run: fn(&mut Wire) -> Result<()>,
}

macro_rules! cases {
    (@ $options:expr) => { $options };
    (@) => { Options::NONE };
    ($($module:ident :: $name:ident $(= $options:expr)?;)+) => {
        /// All cases, in the order of the requirements.
        const CASES: &[Case] = &[$(Case {
            name: stringify!($name),
            options: cases!(@ $($options)?),
            run: cases::$module::$name,
        }),+];

        $(
            #[test]
            fn $name() {
                assert_case(stringify!($name));
            }
        )+
    };
}

const HAIRPIN: Options =
    Options::netdp(&["--hairpin-interface", "pod?", "--udp-endpoint-independent"]);

cases! {
    translate::r1_1_pods_leave_with_the_nodes_address;
    translate::r1_2_non_masquerade_cidrs_see_the_pod;
    translate::r1_3_the_nodes_own_addresses_see_the_pod;
    translate::r1_4_replies_of_inbound_flows_keep_the_pods_address;
    translate::r1_4_node_port_replies_pass;
    translate::r1_5_a_stray_packet_does_not_make_a_syn_a_reply;
    translate::r1_6_multicast_and_link_local_are_left_alone;
    devices::r1_7_tunnel_packets_are_not_translated_again;
    translate::r1_8_pods_of_one_node_see_each_other;
    translate::r1_10_each_uplink_has_its_own_address;
    translate::r1_10_the_routes_preferred_source_is_used;
    translate::r1_10_no_address_means_no_packet;
    racing::r2_1_two_pods_at_the_same_moment;
    ports::r2_1_two_pods_never_share_a_tuple;
    racing::r2_1b_two_first_packets_of_one_flow = Options::netdp(&["--port-mode", "random"]);
    ports::r2_2_one_port_for_all_destinations = Options::netdp(&["--udp-endpoint-independent"]);
    ports::r2_3_a_free_port_is_kept;
    ports::r2_3_taken_ports_are_replaced_at_random;
    ports::r2_3_random_ports_on_demand = Options::netdp(&["--port-mode", "random"]);
    ports::r2_3_hashed_ports_are_repeatable = Options::netdp(&["--port-mode", "hash"]);
    ports::r2_4_port_classes_are_kept;
    ports::r2_5_to_ports_is_kept_to = Options::to_ports("5000-5009");
    ports::r2_5_reserved_ports_are_not_given_away;
    ports::r2_6_every_port_is_used_then_the_flow_is_refused = Options::to_ports("5000-5009");
    ports::r2_8_the_pod_is_told_that_ports_are_used_up = Options::to_ports("5000-5009");
    ports::r2_9_unsolicited_packets_do_not_move_a_port;
    sharing::r2_10_the_nodes_socket_first;
    sharing::r2_10_the_pod_first;
    sharing::r2_11_a_listener_still_gets_new_connections;
    ports::r2_12_only_the_asked_may_answer;
    hairpin::r2_13_pods_that_ask_for_each_other_meet = HAIRPIN;
    hairpin::r2_13_a_pod_learns_that_the_other_refuses = HAIRPIN;
    hairpin::r2_13_the_nodes_own_ports_stay_its_own = HAIRPIN;
    ports::r2_14_unsolicited_packets_are_the_nodes;
    timers::r3_1_udp;
    timers::r3_2_tcp_established;
    timers::r3_3_tcp_on_its_way;
    timers::r3_3_a_half_closed_download_goes_on;
    timers::r3_4_icmp_and_others;
    timers::r3_5_outbound_packets_refresh;
    timers::r3_6_icmp_never_ends_a_mapping;
    timers::r3_7_a_rst_leaves_the_mapping_for_a_while;
    timers::r3_8_a_guessed_rst_does_not_shorten_a_flow;
    timers::r3_9_a_new_syn_reopens;
    timers::r3_9_simultaneous_open;
    timers::r3_11_timeouts_are_settings = Options::netdp(&["--timeout", "udp-unreplied=10s", "--timeout", "tcp-established=20s"]);
    invalid::r4_1_segments_without_a_connection_do_not_leak;
    invalid::r4_1_bad_checksums_do_not_leak;
    invalid::r4_1_malformed_packets_do_not_leak;
    invalid::r4_1_out_of_window_segments_do_not_leak;
    invalid::r4_2_out_of_window_data_comes_in;
    invalid::r4_3_a_connection_in_mid_stream_is_picked_up;
    invalid::r4_4_late_segments_after_the_close;
    invalid::r4_5_bad_checksums_stay_bad;
    node_errors::r5_1_the_ttl_goes_down_once;
    rewriting::r5_1_nothing_else_changes;
    rewriting::r5_1_ipv4_options_stay;
    rewriting::r5_2_no_udp_checksum_stays_none;
    rewriting::r5_2_a_computed_zero_is_sent_as_ones;
    buffers::r5_6_copies_are_not_touched;
    buffers::r5_6_headers_outside_the_linear_area = Options::JUMBO;
    protocols::r5_7_sctp_keeps_its_crc;
    protocols::r5_7_sctp_ports_never_change;
    rewriting::r5_8_vlan_tags_in_band;
    devices::r5_8_vlan_tags_taken_off;
    devices::r5_8_no_ethernet_header = Options::medium(Medium::Tun);
    ports::r5_8_a_refusal_without_ethernet_header = Options { to_ports: "5000-5009", ..Options::medium(Medium::Tun) };
    rewriting::r5_9_ipv6_extension_headers;
    rewriting::r5_9_unknown_headers_do_not_leak;
    rewriting::r5_10_ethernet_padding_is_ignored;
    queries::r6_1_timestamp_queries;
    errors::r6_2_inbound_errors_reach_the_pod;
    errors::r6_2_quench_and_redirect_do_not;
    errors::r6_3_eight_bytes_are_enough;
    errors::r6_3_options_inside;
    errors::r6_3_extensions_stay;
    errors::r6_3_a_quoted_datagram_without_checksum;
    errors::r6_4_errors_by_the_pod;
    errors::r6_4_errors_about_nothing_do_not_leak;
    errors::r6_5_bad_checksums_inside_do_not_matter;
    errors::r6_5_bad_icmp_checksums_stay_bad_or_go;
    node_errors::r6_6_a_server_learns_the_pods_small_mtu = Options::pod_mtu(1300);
    node_errors::r6_6_a_server_learns_that_hops_ran_out;
    node_errors::r6_7_a_pod_learns_of_its_own_packet = Options::uplink_mtu(1400);
    node_errors::r7_1_a_hop_beyond_is_smaller;
    fragments::r7_2_the_node_fragments = Options::uplink_mtu(1400);
    fragments::r7_3_out_in_order;
    fragments::r7_3_out_reversed;
    fragments::r7_3_out_first_in_the_middle;
    fragments::r7_3_out_with_a_changed_port;
    fragments::r7_3_a_lone_fragment_does_not_leak;
    fragments::r7_4_back_in_order;
    fragments::r7_4_back_reversed;
    fragments::r7_4_back_first_in_the_middle;
    fragments::r7_4_two_datagrams_interleaved;
    fragments::r7_4_lone_fragments_do_not_use_up_the_room;
    fragments::r7_5_tiny_and_overlapping_fragments_do_not_leak;
    fragments::r7_6_two_pods_with_one_identification;
    protocols::r8_1_any_protocol_by_address;
    protocols::r8_1_a_second_pod_is_refused;
    protocols::r8_1_udp_lite;
    protocols::r8_1_udp_lite_with_partial_coverage;
    protocols::r8_1_dccp;
    protocols::r8_1_udp_lite_of_two_pods;
    lifecycle::r9_2_flows_outlive_the_agent;
    lifecycle::r9_5_flows_end_with_their_address;
    lifecycle::r9_5_an_added_address_changes_nothing;
    lifecycle::r9_5_flows_survive_a_link_flap;
    lifecycle::r9_5_flows_survive_a_conntrack_flush;
    lifecycle::r9_6_replies_may_come_by_another_uplink;
    lifecycle::r9_6_a_new_flow_uses_the_uplink_that_routing_says;
    devices::r9_7_one_translation_on_a_bridge = Options::medium(Medium::Bridge);
    devices::r9_7_one_translation_on_a_macvlan = Options::medium(Medium::Macvlan);
    devices::r9_7_one_translation_where_both_are_named = Options::medium(Medium::Both);
    devices::r9_7_one_translation_where_the_lower_has_addresses = Options::medium(Medium::BothWithAddresses);
    lifecycle::r9_10_the_nodes_own_flows_are_untouched;
}

fn run(case: &Case, subject: Subject) -> Result<()> {
    finish(case, Wire::new(subject, &case.options)?)
}

/// Runs the case on its bed.
fn finish(case: &Case, mut wire: Wire) -> Result<()> {
    (case.run)(&mut wire)?;
    wire.finish()
}

/// Runs a case against netdp.
fn assert_case(name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    let result = run(case, Subject::Netdp);
    match (result, controls::NOT_YET.contains(&name)) {
        (Ok(()), false) | (Err(_), true) => {}
        (Ok(()), true) => {
            panic!("{name} passes now: take it off the list of what is not yet built")
        }
        (Err(error), false) => panic!("{name}: {error:#}"),
    }
}

/// The cases run against the controls: each control fails exactly where it should, which proves
/// that the cases can fail. `NETDP_WIRE_TABLE=1` with `--nocapture` prints the scores, netdp's
/// included.
#[test]
fn controls_fail_where_they_should() {
    controls::run();
}

/// The cases run in iptables mode: the differences are those in docs/iptables-mode.md.
#[test]
fn iptables_mode_differs_where_the_document_says() {
    iptables_mode::run();
}

/// As the next test, for iptables mode.
#[test]
fn the_document_has_the_differences_of_iptables_mode() {
    iptables_mode::check_document().unwrap();
}

/// `NETDP_REWRITE_DOCS=1` regenerates the document.
#[test]
fn the_document_is_what_the_table_says() {
    requirements::check().unwrap();
}
