use super::counts::{Counts, Observed, network};
use super::judge::{Verdict, findings};
use super::window::Window;
use crate::config::{Origin, Rule, RuleAction, Rules};
use crate::state_dir::StateDir;
use ipnet::IpNet;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn counts(pod_new: u64, pod_answered: u64, node_new: u64, node_answered: u64) -> Counts {
    Counts {
        pod_new,
        pod_answered,
        pod_packets: pod_new,
        node_new,
        node_answered,
    }
}

fn observed(network: &str, counts: Counts) -> Observed {
    [(net(network), counts)].into()
}

#[test]
fn verdicts_follow_the_table() {
    use Verdict::{NoWayBack, NobodyAnswers, Silent, Well};
    for (numbers, expected) in [
        ([19, 0, 9, 9], None),
        ([20, 0, 3, 3], Some(NoWayBack)),
        ([20, 1, 3, 3], Some(Well)),
        ([100, 4, 5, 5], Some(NoWayBack)),
        ([100, 5, 5, 5], Some(Well)),
        ([20, 0, 0, 0], Some(Silent)),
        ([20, 0, 2, 2], Some(Silent)),
        ([20, 0, 10, 8], Some(Well)),
        ([20, 0, 10, 9], Some(NoWayBack)),
        ([20, 0, 30, 1], Some(NobodyAnswers)),
        ([20, 0, 1, 0], Some(NobodyAnswers)),
        ([20, 0, 20, 1], Some(Well)),
    ] {
        let [a, b, c, d] = numbers;
        assert_eq!(Verdict::of(&counts(a, b, c, d)), expected, "{numbers:?}");
    }
}

#[test]
fn pods_that_go_on_sending_were_answered() {
    let mut counts = counts(40, 0, 5, 5);
    assert_eq!(Verdict::of(&counts), Some(Verdict::NoWayBack));
    counts.pod_packets = 42;
    assert_eq!(Verdict::of(&counts), Some(Verdict::Well));
    counts.pod_packets = 1000;
    assert_eq!(counts.pods_heard(), 40, "not more than attempts");
}

#[test]
fn only_what_is_new_is_added_and_a_replaced_entry_begins_anew() {
    let mut window = Window::default();
    assert!(window.observe(1_000, observed("10.2.0.0/24", counts(10, 1, 2, 2))));
    assert!(!window.observe(1_010, observed("10.2.0.0/24", counts(10, 1, 2, 2))));
    window.observe(1_020, observed("10.2.0.0/24", counts(15, 1, 3, 2)));
    assert_eq!(window.sums(1_020)[&net("10.2.0.0/24")], counts(15, 1, 3, 2));
    let mut anew = counts(4, 2, 0, 0);
    anew.pod_packets = 30;
    window.observe(1_030, observed("10.2.0.0/24", anew));
    let mut sum = counts(19, 3, 3, 2);
    sum.pod_packets = 30;
    assert_eq!(window.sums(1_030)[&net("10.2.0.0/24")], sum);
}

#[test]
fn attempts_whose_packets_are_lost_are_no_evidence() {
    let network = "10.2.0.0/24";
    let seen = |pod_new, pod_packets| {
        let all = Counts {
            pod_packets,
            ..counts(pod_new, 0, 5, 5)
        };
        observed(network, all)
    };
    let sum = |window: &Window| window.sums(1_030).get(&net(network)).copied();
    let mut window = Window::default();
    // They left between the readings of packets and of attempts.
    assert!(window.observe(1_000, seen(24, 1)));
    assert_eq!(sum(&window), None);
    assert!(window.observe(1_010, seen(24, 24)));
    assert_eq!(sum(&window), Some(counts(24, 0, 5, 5)));
    // The pair was replaced: 24 packets became 2, whatever followed the attempts.
    assert!(window.observe(1_020, seen(48, 2)));
    assert!(window.observe(1_030, seen(48, 2)));
    assert_eq!(sum(&window), Some(counts(24, 0, 5, 5)));
    // What comes later counts.
    let Some(before) = sum(&window) else { panic!() };
    window.observe(1_030, seen(50, 4));
    assert_eq!(sum(&window).map(|it| it.pod_new), Some(before.pod_new + 2));
}

#[test]
fn ten_minutes_count_and_survive_a_restart() {
    let path = tempfile::tempdir().unwrap();
    let dir = StateDir::at(path.path());
    let mut window = Window::read(&dir).unwrap();
    window.observe(1_200, observed("10.2.0.0/24", counts(5, 0, 0, 0)));
    window.observe(1_500, observed("10.2.0.0/24", counts(12, 0, 0, 0)));
    window.save(&dir).unwrap();
    let mut window = Window::read(&dir).unwrap();
    assert!(!window.observe(1_510, observed("10.2.0.0/24", counts(12, 0, 0, 0))));
    assert_eq!(window.sums(1_799)[&net("10.2.0.0/24")].pod_new, 12);
    assert_eq!(window.sums(1_800)[&net("10.2.0.0/24")].pod_new, 7);
    assert!(window.observe(2_200, Observed::new()), "all has left it");
    assert!(window.sums(2_200).is_empty());
}

#[test]
fn a_scan_does_not_displace_a_busy_network() {
    let mut window = Window::default();
    let mut many = observed("10.2.0.0/24", counts(50, 0, 0, 0));
    for n in 0..5_000_u32 {
        let address: std::net::IpAddr = std::net::Ipv4Addr::from(0x0b00_0000 + n * 256).into();
        many.insert(network(address), counts(1, 0, 0, 0));
    }
    window.observe(1_000, many);
    let sums = window.sums(1_000);
    assert_eq!(sums.len(), 1024);
    assert_eq!(sums[&net("10.2.0.0/24")].pod_new, 50);
}

#[test]
fn what_is_masqueraded_by_now_is_not_judged() {
    let rules = |list: &[(&str, RuleAction)]| -> Rules {
        let rule = |(prefix, action): &(&str, RuleAction)| Rule {
            prefix: net(prefix),
            action: *action,
            origin: Origin::BuiltIn,
            also: Vec::new(),
        };
        list.iter().map(rule).collect()
    };
    let sums = observed("10.2.0.0/24", counts(30, 0, 5, 5));
    let bypass = ("10.0.0.0/8", RuleAction::Bypass);
    let judged = |list: &[(&str, RuleAction)]| findings(&sums, &rules(list)).len();
    assert_eq!(judged(&[bypass]), 1);
    assert_eq!(
        judged(&[bypass, ("10.2.0.0/24", RuleAction::Masquerade)]),
        0
    );
    assert_eq!(judged(&[]), 0, "masqueraded by default");
    assert_eq!(
        judged(&[("10.2.0.64/26", RuleAction::Bypass)]),
        1,
        "in part"
    );
}

#[test]
fn networks_have_the_length_of_their_family() {
    for (address, expected) in [
        ("10.2.3.4", "10.2.3.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("fd00:1:2:3::4", "fd00:1:2:3::/64"),
    ] {
        assert_eq!(network(address.parse().unwrap()), net(expected));
    }
}
