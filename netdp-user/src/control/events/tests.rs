use super::*;
use crate::pod::NoEbpf;

pub(super) fn map(name: &str) -> MapRef {
    MapRef {
        namespace: "kube-system".into(),
        name: name.into(),
        uid: "u".into(),
        resource_version: "7".into(),
    }
}

fn told() -> Told {
    Told {
        version: "1".into(),
        uplinks: vec!["eth0".into(), "eth1".into()],
        refused: [("PortsExhausted", 5), ("TablesFull", 1)].into(),
        ..Told::default()
    }
}

fn reasons(before: &Told, now: &Told) -> Vec<(&'static str, String)> {
    let found = happenings(before, now).into_iter();
    found.map(|it| (it.reason, it.message)).collect()
}

#[test]
fn the_first_look_is_no_news_of_the_node() {
    assert_eq!(reasons(&Told::default(), &told()), []);
}

#[test]
fn refused_flows_and_lost_uplinks_are_told_of_the_node() {
    let mut now = told();
    now.refused.insert("PortsExhausted", 8);
    now.uplinks.remove(0);
    let found = reasons(&told(), &now);
    assert_eq!(found.len(), 2);
    assert!(found[0].0 == "UplinkLost" && found[0].1.contains("on eth0:"));
    assert!(found[1].0 == "PortsExhausted" && found[1].1.starts_with("3 "));
    assert_eq!(reasons(&now, &now), []);
}

#[test]
fn programs_that_were_taken_off_are_told_even_if_they_are_back() {
    let mut now = told();
    now.losses = 1;
    now.last_loss = "the egress program is not attached to eth0 (tcx)".into();
    let found = reasons(&told(), &now);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, "DatapathDetached");
    assert!(found[0].1.ends_with(&now.last_loss));
    assert_eq!(reasons(&now, &now), []);
}

#[test]
fn a_node_without_ebpf_is_told_once_with_what_would_mend_it() {
    let mut now = told();
    now.no_ebpf = Some(NoEbpf {
        why: "CAP_BPF is missing".into(),
        add: vec!["containers[0].a: [BPF]".into(), "volumes: []".into()],
    });
    let found = reasons(&Told::default(), &now);
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
    let mut now = told();
    now.serial = 1;
    now.maps = vec![map("good"), map("bad")];
    now.rejected = vec![
        "kube-system/bad/config:2: no".into(),
        "/etc/config/x:1: neither".into(),
    ];
    let found = happenings(&told(), &now);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].about, About::Map(map("bad")));
    assert_eq!(
        found[0].message,
        "config:2: no; the previous configuration stays in force"
    );
    assert_eq!(found[1].about, About::Node);
    assert!(found[1].message.starts_with("/etc/config/x:1: neither;"));
}

#[test]
fn what_is_in_force_is_told_of_each_config_map_and_warnings_of_their_own() {
    let mut now = told();
    now.serial = 1;
    now.maps = vec![map("a"), map("b")];
    now.warnings = vec!["kube-system/b/config:3: odd".into()];
    let found = happenings(&told(), &now);
    let reasons: Vec<_> = found.iter().map(|it| it.reason).collect();
    assert_eq!(reasons, ["ConfigApplied", "ConfigApplied", "ConfigWarning"]);
    assert_eq!(found[2].about, About::Map(map("b")));
    assert_eq!(found[2].message, "config:3: odd");
}

#[test]
fn of_many_config_maps_only_what_is_new_is_told() {
    let mut before = told();
    before.serial = 1;
    before.maps = (0..50).map(|n| map(&format!("map{n}"))).collect();
    let mut now = before.clone();
    now.serial = 2;
    now.maps[7].resource_version = "8".into();
    let found = happenings(&before, &now);
    let about: Vec<_> = found.iter().map(|it| &it.about).collect();
    assert_eq!(about, [&About::Map(now.maps[7].clone())]);
}

#[test]
fn a_config_map_that_is_gone_is_told_of_and_a_file_of_the_node() {
    let mut before = told();
    before.maps = vec![map("a"), map("b")];
    let mut now = before.clone();
    now.serial = 1;
    now.maps.remove(0);
    now.gone = vec!["kube-system/a/config".into(), "/etc/config/x".into()];
    now.hash = "h".into();
    let found = happenings(&before, &now);
    let reasons: Vec<_> = found.iter().map(|it| (it.reason, &it.about)).collect();
    assert_eq!(
        reasons,
        [
            ("ConfigGone", &About::Map(map("a"))),
            ("ConfigGone", &About::Node)
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
    let mut standing = Standing::default();
    let all = [one.clone(), two, leak];
    let unsaid = standing.unsaid(&all);
    assert_eq!(unsaid["NoAddress"], ["eth0", "eth1"]);
    assert_eq!(unsaid["Leak"], ["wg0"]);
    // Conditions beyond the budget remain unpublished.
    for texts in ["NoAddress"].map(|reason| (reason, unsaid[reason].clone())) {
        standing.said(texts.0, texts.1);
    }
    assert_eq!(standing.unsaid(&all).len(), 1);
    standing.said("Leak", unsaid["Leak"].clone());
    assert!(standing.unsaid(&all).is_empty());
    assert!(standing.unsaid(&all[1..]).is_empty());
    assert_eq!(standing.unsaid(&[one])["NoAddress"], ["eth0"]);
}
