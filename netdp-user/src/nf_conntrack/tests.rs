use super::{Flow, NfTcpState, NfTuple, message};
use netlink_packet_netfilter::conntrack::ConntrackAttribute;

fn flow(source: &str, server: &str, node: &str) -> Flow {
    let original = NfTuple {
        source: source.parse().unwrap(),
        destination: server.parse().unwrap(),
        source_id: 40_000,
        destination_id: 443,
    };
    Flow {
        protocol: 6,
        original,
        reply: NfTuple {
            destination: node.parse().unwrap(),
            destination_id: 50_000,
            ..original.reversed()
        },
        answered: true,
        timeout: 100,
        tcp: Some(NfTcpState::Established),
        // As is every entry that is passed to the kernel.
        picked_up: true,
    }
}

#[test]
fn a_flow_survives_its_attributes() {
    for flow in [
        flow("10.0.0.1", "192.0.2.1", "192.0.2.9"),
        flow("fd00::1", "2001:db8::1", "2001:db8::9"),
    ] {
        let mut attributes = message::translated_attributes(&flow).unwrap();
        // The kernel returns the reply direction as it is after translation.
        let returned = message::translated_attributes(&Flow {
            original: flow.reply.reversed(),
            ..flow
        })
        .unwrap();
        let reply = returned
            .into_iter()
            .find(|a| matches!(a, ConntrackAttribute::CtaTupleReply(_)));
        attributes.retain(|a| !matches!(a, ConntrackAttribute::CtaTupleReply(_)));
        attributes.extend(reply);
        assert_eq!(message::flow(&attributes), Some(flow));
        assert!(flow.is_masqueraded());
        assert_eq!(flow.translated_original().source_id, 50_000);
    }
}

#[test]
fn a_mark_is_distinguished_from_flows() {
    let mark = message::flow(&message::untranslated_attributes(&Flow::mark())).unwrap();
    assert!(mark.is_mark());
    assert!(!mark.is_masqueraded() && !mark.answered);
    assert!(!flow("10.0.0.1", "192.0.2.1", "192.0.2.9").is_mark());
}

#[test]
fn half_a_message_is_no_flow() {
    let key = message::key_attributes(&flow("10.0.0.1", "192.0.2.1", "192.0.2.9"));
    assert_eq!(message::flow(&key), None);
}
