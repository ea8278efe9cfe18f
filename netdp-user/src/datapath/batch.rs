//! Batched reads, writes and removals of map entries: `BPF_MAP_LOOKUP_BATCH`,
//! `BPF_MAP_UPDATE_BATCH` and `BPF_MAP_DELETE_BATCH`, which aya does not offer. Hash maps support
//! them since Linux 5.6, tries since 5.13 (kernel/bpf/lpm_trie.c).

use super::syscall::bpf;
use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{MapData, MapType};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

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
    /// Creates the attribute for `count` keys and as many values (or none) at these addresses.
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

/// Types of maps that may be read in batches. For other types the batch cursor is a key, which is
/// larger than that of these (`generic_map_lookup_batch`, kernel/bpf/syscall.c).
const READABLE: [MapType; 3] = [MapType::Hash, MapType::LruHash, MapType::Array];

/// Types of maps that may be written in batches.
const WRITABLE: [MapType; 3] = [MapType::Hash, MapType::LruHash, MapType::LpmTrie];

/// Returns the descriptor of `map` if it is of one of these types and its key size, and its value
/// size where values are used, match: the kernel uses the map's own sizes, whatever the buffers
/// hold.
fn checked<'a>(
    map: &'a MapData,
    kinds: &[MapType],
    key: usize,
    value: Option<usize>,
) -> Result<BorrowedFd<'a>> {
    let info = map.info().context("querying a map's sizes")?;
    let (kind, is_key, is_value) = (
        info.map_type().context("querying a map's kind")?,
        info.key_size() as usize,
        info.value_size() as usize,
    );
    ensure!(
        kinds.contains(&kind) && is_key == key && value.is_none_or(|value| is_value == value),
        "the map {} is of the kind {kind:?} with keys of {is_key} bytes and values of {is_value}; \
         keys of {key} bytes were expected, and values of {}",
        info.name_as_str().unwrap_or_default(),
        value.map_or_else(|| "any number".into(), |value| value.to_string()),
    );
    Ok(map.fd().as_fd())
}

/// Reports whether the kernel supports batched writes and removals for this map, by an empty batch,
/// which changes nothing.
///
/// # Errors
/// Returns an error if the kernel refuses for another reason.
pub fn takes_writes(map: &MapData) -> Result<bool> {
    /// The map type has no batch operations. Kernel-internal error number.
    const ENOTSUPP: i32 = 524;
    for command in [BPF_MAP_UPDATE_BATCH, BPF_MAP_DELETE_BATCH] {
        let mut attr = Attr::new(map.fd().as_fd(), 0, 0, 0)?;
        // SAFETY: the batch is empty, so the kernel reads no keys or values.
        match unsafe { bpf(command, &mut attr) } {
            Ok(_) => {}
            // The command is unknown, or not supported for this type of map.
            Err(err) if matches!(err.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) => {
                return Ok(false);
            }
            Err(err) => return Err(err).context("probing whether a map supports batches"),
        }
    }
    Ok(true)
}

/// Entries read by one system call: few enough that the data, and the memory that the kernel
/// touched for it, stays in a core's cache while it is processed.
const READ_AT_ONCE: usize = 1024;

/// Calls `each` for every entry of the hash map behind `map`. Entries that are added or removed
/// meanwhile may be included or not.
///
/// # Errors
/// Returns an error if the sizes of `K` and `V` are not those of the map's keys and values, or the
/// kernel refuses to read it.
pub fn for_each<K: Pod, V: Pod>(map: &MapData, mut each: impl FnMut(&K, &V)) -> Result<()> {
    for_each_batch::<K, V>(map, |keys, values| {
        for (key, value) in keys.iter().zip(values) {
            each(key, value);
        }
        Ok(())
    })
}

/// Does as [`for_each`], one batch of entries at a time.
///
/// # Errors
/// Returns the errors of [`for_each`], and any error of `each`.
pub fn for_each_batch<K: Pod, V: Pod>(
    map: &MapData,
    mut each: impl FnMut(&[K], &[V]) -> Result<()>,
) -> Result<()> {
    let map = checked(map, &READABLE, size_of::<K>(), Some(size_of::<V>()))?;
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
        // SAFETY: the pointers are to live buffers of `count` elements of the map's sizes, and the
        // kernel writes at most that many; the batch cursor has four bytes for these types of maps.
        let error = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) }.err();
        let code = error.as_ref().and_then(std::io::Error::raw_os_error);
        // ENOSPC: a bucket holds more entries than fit; nothing was read.
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
        // SAFETY: the kernel has initialised `count` elements of each; any bytes are a valid `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        each(&keys, &values)?;
        // ENOENT: end of the map.
        if code.is_some() {
            return Ok(());
        }
        cursor = Some(next);
    }
}

/// Removes these entries; missing ones are skipped.
///
/// # Errors
/// Returns an error if the size of `K` is not that of the map's keys, or the kernel refuses to
/// change it.
pub fn remove<K: Pod>(map: &MapData, mut keys: &[K]) -> Result<()> {
    let map = checked(map, &WRITABLE, size_of::<K>(), None)?;
    while !keys.is_empty() {
        let mut attr = Attr::new(map, keys.as_ptr() as u64, 0, keys.len())?;
        // SAFETY: the kernel reads `count` keys of the map's size from a live buffer.
        let error = unsafe { bpf(BPF_MAP_DELETE_BATCH, &mut attr) }.err();
        let Some(error) = error else {
            return Ok(());
        };
        if error.raw_os_error() != Some(libc::ENOENT) {
            return Err(error).context("removing entries of a map");
        }
        // It stopped at a missing key: continue behind it.
        let done = usize::try_from(attr.count)?.saturating_add(1);
        keys = keys.get(done..).unwrap_or_default();
    }
    Ok(())
}

/// Inserts or overwrites these entries, in order. Returns the number written, which is less than
/// all if the kernel refuses one.
///
/// # Errors
/// Returns an error if there are too many entries, or the sizes of `K` and `V` are not those of the
/// map's keys and values.
pub fn update<K: Pod, V: Pod>(map: &MapData, keys: &[K], values: &[V]) -> Result<usize> {
    let map = checked(map, &WRITABLE, size_of::<K>(), Some(size_of::<V>()))?;
    let all = keys.len().min(values.len());
    if all == 0 {
        return Ok(0);
    }
    let (first, value) = (keys.as_ptr() as u64, values.as_ptr() as u64);
    let mut attr = Attr::new(map, first, value, all)?;
    // SAFETY: the kernel reads `count` keys and values of the map's sizes from live buffers.
    if unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }.is_ok() {
        return Ok(all);
    }
    // If the command failed before the first entry, `count` is unchanged.
    let done = usize::try_from(attr.count)?;
    Ok(if done < all { done } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::syscall::descriptor;

    /// The first fields of the member of `union bpf_attr` for `BPF_MAP_CREATE`.
    #[repr(C)]
    struct Create {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }

    /// Creates a map of 8 entries.
    fn map(kind: MapType, key_size: u32, value_size: u32) -> MapData {
        const BPF_MAP_CREATE: libc::c_int = 0;
        const BPF_F_NO_PREALLOC: u32 = 1;
        let mut create = Create {
            map_type: kind as u32,
            key_size,
            value_size,
            max_entries: 8,
            map_flags: match kind {
                MapType::LpmTrie => BPF_F_NO_PREALLOC,
                _ => 0,
            },
        };
        // SAFETY: the attribute is the one of this command, and outlives the call.
        let fd = unsafe { descriptor(BPF_MAP_CREATE, &mut create) };
        let fd = fd.expect("this test needs root");
        MapData::from_fd(fd).unwrap()
    }

    fn read<K: Pod + Ord, V: Pod + Ord>(map: &MapData) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        for_each::<K, V>(map, |key, value| entries.push((*key, *value)))?;
        entries.sort();
        Ok(entries)
    }

    #[test]
    fn entries_come_and_go_in_batches() {
        let hash = map(MapType::Hash, 4, 8);
        assert_eq!(update(&hash, &[1_u32, 2, 3], &[10_u64, 20, 30]).unwrap(), 3);
        assert_eq!(read(&hash).unwrap(), [(1_u32, 10_u64), (2, 20), (3, 30)]);
        remove(&hash, &[1_u32, 7, 3]).unwrap();
        assert_eq!(read(&hash).unwrap(), [(2_u32, 20_u64)]);
    }

    /// The kernel would read or write beyond the end of buffers that are too small.
    #[test]
    fn other_sizes_than_the_maps_are_refused() {
        let hash = map(MapType::Hash, 4, 8);
        update(&hash, &[1_u32], &[10_u64]).unwrap();
        let refused = [
            read::<u32, u32>(&hash).map(drop),
            read::<u16, u64>(&hash).map(drop),
            read::<u64, u64>(&hash).map(drop),
            update(&hash, &[1_u32], &[1_u32]).map(drop),
            update(&hash, &[1_u8], &[1_u64]).map(drop),
            remove(&hash, &[1_u8]),
            remove(&hash, &[1_u64]),
        ];
        for refused in refused {
            let told = format!("{:#}", refused.unwrap_err());
            assert!(told.contains("keys of 4 bytes and values of 8"), "{told}");
        }
        assert_eq!(read(&hash).unwrap(), [(1_u32, 10_u64)]);
    }

    #[test]
    fn other_kinds_of_maps_are_refused() {
        // The batch cursor is a key.
        let trie = map(MapType::LpmTrie, 8, 4);
        assert!(read::<[u8; 8], u32>(&trie).is_err());
        // Values are per CPU.
        let counters = map(MapType::PerCpuArray, 4, 8);
        assert!(read::<u32, u64>(&counters).is_err());
    }

    #[test]
    fn the_kernel_tells_what_it_takes() {
        for (kind, takes) in [
            (MapType::Hash, true),
            (MapType::LpmTrie, true),
            // Entries can't be removed.
            (MapType::Array, false),
        ] {
            let key = if kind == MapType::LpmTrie { 8 } else { 4 };
            assert_eq!(takes_writes(&map(kind, key, 8)).unwrap(), takes, "{kind:?}");
        }
    }
}
