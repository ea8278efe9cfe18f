use super::*;
use crate::requirements::NoEbpf;

pub(super) fn map(name: &str) -> ConfigMapRef {
    ConfigMapRef {
        namespace: "kube-system".into(),
        name: name.into(),
        uid: "u".into(),
        resource_version: "7".into(),
    }
}

fn status() -> AgentStatus {
    AgentStatus {
        version: "1".into(),
        uplinks: vec!["eth0".into(), "eth1".into()],
        refused: [("PortsExhausted", 5), ("TablesFull", 1)].into(),
        ..AgentStatus::default()
    }
}

fn reasons(before: &AgentStatus, now: &AgentStatus) -> Vec<(&'static str, String)> {
    let found = drafts(before, now).into_iter();
    found.map(|it| (it.reason, it.message)).collect()
}

#[test]
fn the_first_look_is_no_news_of_the_node() {
    assert_eq!(reasons(&AgentStatus::default(), &status()), []);
}

#[test]
fn refused_flows_and_lost_uplinks_are_told_of_the_node() {
    let mut now = status();
    now.refused.insert("PortsExhausted", 8);
    now.uplinks.remove(0);
    let found = reasons(&status(), &now);
    assert_eq!(found.len(), 2);
    assert!(found[0].0 == "UplinkLost" && found[0].1.contains("on eth0:"));
    assert!(found[1].0 == "PortsExhausted" && found[1].1.starts_with("3 "));
    assert_eq!(reasons(&now, &now), []);
}

#[test]
fn programs_that_were_taken_off_are_told_even_if_they_are_back() {
    let mut now = status();
    now.losses = 1;
    now.last_loss = "the egress program is not attached to eth0 (tcx)".into();
    let found = reasons(&status(), &now);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, "DatapathDetached");
    assert!(found[0].1.ends_with(&now.last_loss));
    assert_eq!(reasons(&now, &now), []);
}

#[test]
fn a_node_without_ebpf_is_told_once_with_what_would_mend_it() {
    let mut now = status();
    now.no_ebpf = Some(NoEbpf {
        why: "CAP_BPF is missing".into(),
        add: vec!["containers[0].a: [BPF]".into(), "volumes: []".into()],
    });
    let found = reasons(&AgentStatus::default(), &now);
    assert_eq!(found.len(), 1, "{found:?}");
    let (reason, message) = &found[0];
    assert_eq!(*reason, "IptablesMode");
    for words in ["CAP_BPF is missing", "containers[0].a: [BPF]; volumes: []"] {
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(reasons(&now, &now), []);
}

#[test]
fn errors_are_told_where_they_are() {
    let mut now = status();
    now.serial = 1;
    now.maps = vec![map("good"), map("bad")];
    now.rejected = vec![
        "kube-system/bad/config:2: no".into(),
        "/etc/config/x:1: neither".into(),
    ];
    let found = drafts(&status(), &now);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].involved, Involved::Map(map("bad")));
    assert_eq!(
        found[0].message,
        "config:2: no; the previous configuration stays in force"
    );
    assert_eq!(found[1].involved, Involved::Node);
    assert!(found[1].message.starts_with("/etc/config/x:1: neither;"));
}

#[test]
fn what_is_in_force_is_told_of_each_config_map_and_warnings_of_their_own() {
    let mut now = status();
    now.serial = 1;
    now.maps = vec![map("a"), map("b")];
    now.warnings = vec!["kube-system/b/config:3: odd".into()];
    let found = drafts(&status(), &now);
    let reasons: Vec<_> = found.iter().map(|it| it.reason).collect();
    assert_eq!(reasons, ["ConfigApplied", "ConfigApplied", "ConfigWarning"]);
    assert_eq!(found[2].involved, Involved::Map(map("b")));
    assert_eq!(found[2].message, "config:3: odd");
}

#[test]
fn of_many_config_maps_only_what_is_new_is_told() {
    let mut before = status();
    before.serial = 1;
    before.maps = (0..50).map(|n| map(&format!("map{n}"))).collect();
    let mut now = before.clone();
    now.serial = 2;
    now.maps[7].resource_version = "8".into();
    let found = drafts(&before, &now);
    let involved: Vec<_> = found.iter().map(|it| &it.involved).collect();
    assert_eq!(involved, [&Involved::Map(now.maps[7].clone())]);
}

#[test]
fn a_config_map_that_is_gone_is_told_of_and_a_file_of_the_node() {
    let mut before = status();
    before.maps = vec![map("a"), map("b")];
    let mut now = before.clone();
    now.serial = 1;
    now.maps.remove(0);
    now.gone = vec!["kube-system/a/config".into(), "/etc/config/x".into()];
    now.hash = "h".into();
    let found = drafts(&before, &now);
    let reasons: Vec<_> = found.iter().map(|it| (it.reason, &it.involved)).collect();
    assert_eq!(
        reasons,
        [
            ("ConfigGone", &Involved::Map(map("a"))),
            ("ConfigGone", &Involved::Node)
        ]
    );
    assert!(found[0].message.ends_with("in force: config h, 0 rules"));
    assert_eq!(
        found[1].message,
        "/etc/config/x: gone; in force: config h, 0 rules"
    );
}

#[test]
fn what_lasts_is_said_once_and_again_if_it_comes_back() {
    let note = |reason, text: &str| Note {
        reason,
        text: text.into(),
    };
    let (one, two) = (note("NoAddress", "eth0"), note("NoAddress", "eth1"));
    let leak = note("Leak", "wg0");
    let mut ongoing = Ongoing::default();
    let all = [one.clone(), two, leak];
    let unpublished = ongoing.unpublished(&all);
    assert_eq!(unpublished["NoAddress"], ["eth0", "eth1"]);
    assert_eq!(unpublished["Leak"], ["wg0"]);
    // Conditions beyond the budget remain unpublished.
    for texts in ["NoAddress"].map(|reason| (reason, unpublished[reason].clone())) {
        ongoing.record(texts.0, texts.1);
    }
    assert_eq!(ongoing.unpublished(&all).len(), 1);
    ongoing.record("Leak", unpublished["Leak"].clone());
    assert!(ongoing.unpublished(&all).is_empty());
    assert!(ongoing.unpublished(&all[1..]).is_empty());
    assert_eq!(ongoing.unpublished(&[one])["NoAddress"], ["eth0"]);
}

#[test]
fn a_network_without_a_way_back_is_told_of_its_config_map_or_the_node() {
    let of_map = no_way_back("10.2.0.0/24", &[map("a"), map("b")]);
    assert_eq!(of_map.involved, Involved::Map(map("a")));
    assert!(of_map.message.starts_with("10.2.0.0/24 is bypassed"));
    assert_eq!(of_map.reason, "NoWayBackToPods");
    assert_eq!(no_way_back("10.2.0.0/24", &[]).involved, Involved::Node);
}
