//! Counters of packets: each with its name and its meaning in one list.

use super::drops::{DropReason, Drops};
use super::traffic::Traffic;

macro_rules! counters {
    (
        traffic { $($(#[doc = $traffic_doc:literal])+ $traffic:ident,)+ }
        plain { $($(#[doc = $plain_doc:literal])+ $plain:ident,)+ }
    ) => {
        /// Counters by outcome; one entry for each number of an interface
        /// ([`super::Uplink::number`]) and each CPU.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $traffic_doc])+ pub $traffic: Traffic,)+
            $($(#[doc = $plain_doc])+ pub $plain: u64,)+
            /// Packets dropped, by reason.
            pub drops: Drops,
        }

        impl Counters {
            /// The number of counters other than those of drops.
            pub const OUTCOMES: usize =
                [$(stringify!($traffic),)+ $(stringify!($plain)),+].len();

            /// The number of those that also have bytes; they come first.
            pub const WITH_BYTES: usize = [$(stringify!($traffic)),+].len();

            /// Returns the name and the value of each counter other than those of drops; of those
            /// with bytes the packets.
            #[must_use]
            pub const fn outcomes(&self) -> [(&'static str, u64); Self::OUTCOMES] {
                [
                    $((stringify!($traffic), self.$traffic.packets),)+
                    $((stringify!($plain), self.$plain)),+
                ]
            }

            /// Adds other counters.
            pub fn add(&mut self, other: &Self) {
                $(self.$traffic.add(&other.$traffic);)+
                $(self.$plain += other.$plain;)+
                for reason in DropReason::ALL {
                    *self.drops.get_mut(*reason) += other.drops.get(*reason);
                }
            }

            /// Subtracts earlier values of these counters.
            pub fn subtract(&mut self, earlier: &Self) {
                $(self.$traffic.subtract(&earlier.$traffic);)+
                $(self.$plain -= earlier.$plain;)+
                for reason in DropReason::ALL {
                    *self.drops.get_mut(*reason) -= earlier.drops.get(*reason);
                }
            }
        }
    };
}

counters! {
    traffic {
        /// Egress: source rewritten.
        egress_masqueraded,
        /// Egress: passed because the policy bypasses the destination.
        egress_bypassed,
        /// Egress: packets of the node itself.
        egress_host,
        /// Egress: replies of inbound flows.
        egress_replies,
        /// Egress: passed because it is never translated (multicast and similar).
        egress_untouched,
        /// Ingress: destination rewritten to the pod.
        ingress_translated,
        /// Ingress: belongs to no mapping; passed to the node.
        ingress_passed,
        /// Egress: could not be translated, but passed because of `--untranslatable`.
        egress_let_out,
        /// Packets of mappings that are in no mapping's count, because the map for carrying over is
        /// full or the kernel had no memory. They are also counted by their outcome.
        traffic_unattributed,
    }
    plain {
        /// ICMP errors translated, in both directions.
        errors_translated,
        /// Ingress: fragments queued until the first one of their datagram arrived.
        fragments_held,
        /// Mappings created by the programs.
        mappings_created,
        /// Mappings that could not preserve their source port.
        ports_changed,
    }
}

const _: () = assert!(
    size_of::<Counters>() == (Counters::OUTCOMES + Counters::WITH_BYTES) * 8 + size_of::<Drops>()
);
