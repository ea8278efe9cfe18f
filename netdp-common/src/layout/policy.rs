//! The policy tries.

/// The policy's action for new flows to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Action {
    /// Bypass: leave the source as it is (a non-masquerade CIDR).
    Bypass = 1,
    /// Masquerade with the uplink's address.
    Masquerade = 2,
    /// Drop: with the uplink's address the packet would match an IPsec policy of the node, but the
    /// kernel has already looked up the policy for the pod's address and does not repeat the
    /// lookup.
    Withhold = 3,
}

impl Action {
    /// Returns the action for the number in a [`PolicyValue`]. Numbers of a newer version
    /// masquerade: the choice that leaks nothing.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        match raw & ACTION_MASK {
            1 => Self::Bypass,
            3 => Self::Withhold,
            _ => Self::Masquerade,
        }
    }
}

/// The part of [`PolicyValue::action`] that is an [`Action`].
pub const ACTION_MASK: u32 = 0xff;

/// [`PolicyValue::action`]: masqueraded now, but an earlier policy bypassed these
/// destinations. Connections of that time may still be alive.
pub const POLICY_WAS_BYPASSED: u32 = 0x100;

/// [`PolicyValue::action`]: no rule has this prefix. The entry only marks where
/// [`POLICY_WAS_BYPASSED`] begins or ends; the rest is that of the covering entry.
pub const POLICY_NO_RULE: u32 = 0x200;

/// Value of the policy tries.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyValue {
    /// An [`Action`] as number (1 bypass, 2 masquerade, 3 withhold) and `POLICY_*` bits.
    pub action: u32,
    /// The rule's number, which is stable across policy changes that keep its prefix; `u32::MAX` if
    /// no rule decides.
    pub rule: u32,
}
