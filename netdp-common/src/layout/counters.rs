//! Packet counters: each with its name and its meaning in one list.

use super::drops::{DropReason, Drops};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident,)+) => {
        /// Packet counters by outcome; one entry for each CPU.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $field: u64,)+
            /// Packets dropped, by reason.
            pub drops: Drops,
        }

        impl Counters {
            /// The number of counters other than those of drops.
            pub const OUTCOMES: usize = [$(stringify!($field)),+].len();

            /// Returns the name and the value of each counter other than those of drops.
            #[must_use]
            pub const fn outcomes(&self) -> [(&'static str, u64); Self::OUTCOMES] {
                [$((stringify!($field), self.$field)),+]
            }

            /// Adds the counters of another CPU.
            pub fn add(&mut self, other: &Self) {
                $(self.$field += other.$field;)+
                for reason in DropReason::ALL {
                    *self.drops.get_mut(*reason) += other.drops.get(*reason);
                }
            }
        }
    };
}

counters! {
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
    /// ICMP errors translated, in both directions.
    errors_translated,
    /// Ingress: fragments queued until the first one of their datagram arrived.
    fragments_held,
    /// Mappings created by the programs.
    mappings_created,
    /// Mappings that could not preserve their source port.
    ports_changed,
}

const _: () = assert!(size_of::<Counters>() == Counters::OUTCOMES * 8 + size_of::<Drops>());
