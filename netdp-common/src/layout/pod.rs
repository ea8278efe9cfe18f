//! The sizes of all map types, and their release to user space as plain old data.

use super::addr::Addr;
use super::counters::Counters;
use super::drops::DropReason;
use super::ended::Ended;
use super::endpoint::Endpoint;
use super::event::{BeginEvent, DropEvent, EventCount};
use super::fragment::Fragment;
use super::inbound::{Inbound, Live};
use super::mapping::{Mapping, RecentAt};
use super::new_mappings::NewMappings;
use super::node::{NodeFlow, NodeFlowPorts, NodeProtocol};
use super::policy::PolicyValue;
use super::port_map::{PortMapBits, PortMapOwner};
use super::reach::Reach;
use super::settings::{Limits, Settings};
use super::share::{Share, ShareEnded};
use super::traffic::{Pair, RuleEnded, RuleHits, Traffic};
use super::tuple::Tuple;
use super::uplink::{MacKey, Source, SourceKey, Uplink};

const _: () = {
    assert!(size_of::<Addr>() == 16);
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<Mapping>() == 40);
    assert!(size_of::<Settings>() == 48);
    assert!(size_of::<Uplink>() == 40);
    assert!(size_of::<SourceKey>() == 20);
    assert!(size_of::<Source>() == 20);
    assert!(size_of::<MacKey>() == 12);
    assert!(size_of::<Inbound>() == 8);
    assert!(size_of::<Fragment>() == 32);
    assert!(size_of::<RecentAt>() == 8);
    assert!(size_of::<PolicyValue>() == 8);
    assert!(size_of::<NodeProtocol>() == 24);
    assert!(size_of::<NodeFlow>() == 8);
    assert!(size_of::<NodeFlowPorts>() == 65_536);
    assert!(size_of::<Live>() == 16);
    assert!(size_of::<Limits>() == 40);
    assert!(size_of::<Share>() == 64);
    assert!(size_of::<ShareEnded>() == 16);
    assert!(size_of::<PortMapOwner>() == 64);
    assert!(size_of::<PortMapBits>() == 8192);
    assert!(size_of::<Endpoint>() == 20);
    assert!(size_of::<Counters>() == 176 + 8 * DropReason::ALL.len());
    assert!(size_of::<Traffic>() == 16);
    assert!(size_of::<RuleHits>() == 32);
    assert!(size_of::<RuleEnded>() == 48);
    assert!(size_of::<Pair>() == 64);
    assert!(size_of::<Reach>() == 16);
    assert!(size_of::<NewMappings>() == 136);
    assert!(size_of::<BeginEvent>() == 80);
    assert!(size_of::<DropEvent>() == 168);
    assert!(size_of::<EventCount>() == 40);
    assert!(size_of::<Ended>() == 160);
};

#[cfg(feature = "user")]
mod user {
    use super::{
        Addr, BeginEvent, Counters, DropEvent, Ended, Endpoint, EventCount, Fragment, Inbound,
        Limits, Live, MacKey, Mapping, NewMappings, NodeFlow, NodeFlowPorts, NodeProtocol, Pair,
        PolicyValue, PortMapBits, PortMapOwner, Reach, RecentAt, RuleEnded, RuleHits, Settings,
        Share, ShareEnded, Source, SourceKey, Traffic, Tuple, Uplink,
    };

    macro_rules! pod {
        ($($name:ty),+) => {
            $(
                // SAFETY: repr(C), consists of integers and byte arrays only, with no implicit
                // padding (the sizes are asserted above).
                unsafe impl aya::Pod for $name {}
            )+
        };
    }

    pod!(
        Addr,
        Tuple,
        Mapping,
        Settings,
        Uplink,
        Inbound,
        PolicyValue,
        Counters,
        NodeProtocol,
        NodeFlow,
        NodeFlowPorts,
        Live,
        Limits,
        Share,
        ShareEnded,
        PortMapOwner,
        PortMapBits,
        Endpoint,
        Fragment,
        RecentAt,
        Source,
        SourceKey,
        MacKey,
        Traffic,
        RuleHits,
        RuleEnded,
        Pair,
        Reach,
        NewMappings,
        BeginEvent,
        DropEvent,
        EventCount,
        Ended
    );
}
