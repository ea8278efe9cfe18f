//! Detection of changes to iptables-legacy's tables, for which the kernel sends no notifications.

use netdp_common::layout::Family;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::{AsRawFd as _, RawFd};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO` (include/uapi/linux/netfilter_ipv4/ip_tables.h).
const GET_INFO: libc::c_int = 64;

/// Size of a `struct ipt_getinfo` or `ip6t_getinfo` in bytes: the table's name, then numbers.
const INFO: usize = 84;

/// Tables whose rules concern pods' packets or replies to them.
const TABLES: [&str; 3] = ["nat", "raw", "mangle"];

/// Size, number of entries and chain offsets of each table; `None` for a table that does not exist.
/// A change that preserves all of these is not detected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LegacyState(Vec<Option<Vec<u8>>>);

impl LegacyState {
    /// Queries the kernel. Creates no table.
    #[must_use]
    pub(crate) fn read() -> Self {
        let of = |family| TABLES.map(|table| info(family, table));
        Self([of(Family::V4), of(Family::V6)].concat())
    }
}

/// Reports whether the legacy interface has a table in the network namespace of the calling thread.
/// A query for it by getsockopt(2) or iptables-legacy would create it, and the nat table activates
/// connection tracking.
pub(crate) fn has_table(family: Family, table: &str) -> bool {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let names = std::fs::read_to_string(path).unwrap_or_default();
    names.lines().any(|name| name == table)
}

fn info(family: Family, table: &str) -> Option<Vec<u8>> {
    if !has_table(family, table) {
        return None;
    }
    let (domain, level) = match family {
        Family::V4 => (AddressFamily::Inet, libc::IPPROTO_IP),
        Family::V6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
    };
    let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    get_info(socket.as_raw_fd(), level, table)
}

fn get_info(socket: RawFd, level: libc::c_int, table: &str) -> Option<Vec<u8>> {
    let mut info = vec![0u8; INFO];
    info.get_mut(..table.len())?
        .copy_from_slice(table.as_bytes());
    let mut length = libc::socklen_t::try_from(INFO).ok()?;
    // SAFETY: the kernel reads and writes `length` bytes of a live buffer of that size.
    let status = unsafe {
        libc::getsockopt(
            socket,
            level,
            GET_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (status == 0).then_some(info)
}
