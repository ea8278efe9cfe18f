//! Reading, writing and removing entries of a map in batches: `BPF_MAP_LOOKUP_BATCH`,
//! `BPF_MAP_UPDATE_BATCH` and `BPF_MAP_DELETE_BATCH`, which aya does not offer. Hash
//! maps take them since Linux 5.6, tries since 5.13 (kernel/bpf/lpm_trie.c).

use anyhow::{Context as _, Result};
use aya::Pod;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// `enum bpf_cmd` in include/uapi/linux/bpf.h.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_DELETE_BATCH: libc::c_int = 27;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
struct Attr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

impl Attr {
    /// For `count` keys and as many values, or none, at these addresses.
    fn new(map: BorrowedFd<'_>, keys: u64, values: u64, count: usize) -> Result<Self> {
        Ok(Self {
            in_batch: 0,
            out_batch: 0,
            keys,
            values,
            count: u32::try_from(count)?,
            map_fd: u32::try_from(map.as_raw_fd())?,
            elem_flags: 0,
            flags: 0,
        })
    }
}

/// How many entries are read by one system call: what is read, and what the
/// kernel touched for it, stays in a core's cache while it is looked at.
const READ_AT_ONCE: usize = 1024;

/// Calls `each` for every entry of the hash map behind `map`. Entries that come
/// or go meanwhile may be seen or not. `K` and `V` must be the map's key and
/// value types.
///
/// # Errors
/// The kernel refused to read the map.
pub fn for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut each: impl FnMut(&K, &V)) -> Result<()> {
    for_each_batch::<K, V>(map, |keys, values| {
        for (key, value) in keys.iter().zip(values) {
            each(key, value);
        }
        Ok(())
    })
}

/// The same, some entries at a time.
///
/// # Errors
/// The kernel refused to read the map, or the error of `each`.
pub fn for_each_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(&[K], &[V]) -> Result<()>,
) -> Result<()> {
    let mut capacity = READ_AT_ONCE;
    let mut keys = Vec::<K>::with_capacity(capacity);
    let mut values = Vec::<V>::with_capacity(capacity);
    let mut cursor: Option<u32> = None;
    loop {
        keys.clear();
        values.clear();
        keys.reserve(capacity);
        values.reserve(capacity);
        let mut next = 0u32;
        let (key, value) = (keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64);
        let mut attr = Attr::new(map, key, value, capacity)?;
        attr.in_batch = cursor
            .as_ref()
            .map_or(0, |cursor| std::ptr::from_ref(cursor) as u64);
        attr.out_batch = &raw mut next as u64;
        // SAFETY: the pointers are to live buffers of `count` elements, and the
        // kernel writes at most that many.
        let error = unsafe { call(BPF_MAP_LOOKUP_BATCH, &mut attr) }.err();
        let code = error.as_ref().and_then(std::io::Error::raw_os_error);
        // ENOSPC: a bucket holds more than fits; nothing was read.
        if code == Some(libc::ENOSPC) {
            capacity *= 2;
            continue;
        }
        if let Some(error) = error
            && code != Some(libc::ENOENT)
        {
            return Err(error).context("reading a map in batches");
        }
        let count = usize::try_from(attr.count)?.min(capacity);
        // SAFETY: the kernel has written `count` elements of each; any bytes
        // are a valid `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        each(&keys, &values)?;
        // ENOENT: that was the end.
        if code.is_some() {
            return Ok(());
        }
        cursor = Some(next);
    }
}

/// Removes these entries; those that are gone already are as good. `K` must be
/// the map's key type.
///
/// # Errors
/// The kernel refused to change the map.
pub fn remove<K: Pod>(map: BorrowedFd<'_>, mut keys: &[K]) -> Result<()> {
    while !keys.is_empty() {
        let mut attr = Attr::new(map, keys.as_ptr() as u64, 0, keys.len())?;
        // SAFETY: the kernel reads `count` keys from a live buffer.
        let error = unsafe { call(BPF_MAP_DELETE_BATCH, &mut attr) }.err();
        let Some(error) = error else {
            return Ok(());
        };
        if error.raw_os_error() != Some(libc::ENOENT) {
            return Err(error).context("removing entries of a map");
        }
        // It stopped at a key that is missing: go on behind it.
        let done = usize::try_from(attr.count)?.saturating_add(1);
        keys = keys.get(done..).unwrap_or_default();
    }
    Ok(())
}

/// As [`remove`]; false where the kernel knows no batches of this kind of map.
///
/// # Errors
/// The kernel refused to change the map.
pub fn try_remove<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> Result<bool> {
    match remove(map, keys) {
        Err(err) if err.downcast_ref::<std::io::Error>().is_some_and(is_unknown) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Writes these entries, new or not; gives how many of them, from the first. It
/// stops at one that the kernel refuses, or before all where the kernel knows no
/// batches of this kind of map. `K` and `V` must be the map's key and value types.
///
/// # Errors
/// There are too many.
pub fn try_update<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> Result<usize> {
    let all = keys.len().min(values.len());
    if all == 0 {
        return Ok(0);
    }
    let (first, value) = (keys.as_ptr() as u64, values.as_ptr() as u64);
    let mut attr = Attr::new(map, first, value, all)?;
    // SAFETY: the kernel reads `count` keys and values from live buffers.
    if unsafe { call(BPF_MAP_UPDATE_BATCH, &mut attr) }.is_ok() {
        return Ok(all);
    }
    // Where it did not even begin, `count` is as it was.
    let done = usize::try_from(attr.count)?;
    Ok(if done < all { done } else { 0 })
}

/// Whether an error says that there are no such batches: the command is unknown,
/// or the map has none (`ENOTSUPP`, which is of the kernel alone).
fn is_unknown(error: &std::io::Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP))
}

/// `bpf(2)` with the `batch` member.
///
/// # Safety
/// The pointers in `attr` must be as `command` wants them.
unsafe fn call(command: libc::c_int, attr: &mut Attr) -> std::io::Result<()> {
    // SAFETY: `attr` lives, and its pointers are as the caller has promised.
    let status = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<Attr>()) };
    if status < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
